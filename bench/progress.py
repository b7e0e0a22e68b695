"""Which step the benchmark is at, on stderr."""

import sys
import time


class Progress:
    """One line on stderr, rewritten on a terminal; where it is a file, a line for each step."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started = time.monotonic()

    def __call__(self, step: str) -> None:
        self._say(step[:100], "" if self._is_terminal else "\n")

    def lasting(self, figure: str) -> None:
        """Say what stays: who waits sees the first figures long before the tables."""
        self._say(figure, "\n")

    def clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def _say(self, text: str, end: str) -> None:
        self.clear()
        line = f"{time.monotonic() - self._started:6.0f} s  {text}"
        print(line, end=end, file=sys.stderr, flush=True)
