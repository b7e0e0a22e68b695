"""Which step the benchmark is at, on stderr."""

import sys
import time


class Progress:
    """One line on stderr, rewritten on a terminal; where it is a file, a line for each step."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started = time.monotonic()

    def __call__(self, step: str) -> None:
        line = f"{time.monotonic() - self._started:6.0f} s  {step}"
        if self._is_terminal:
            print(f"\r\x1b[2K{line[:110]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def lasting(self, figure: str) -> None:
        """A line that stays: who waits sees the first figures long before the tables."""
        self.clear()
        print(f"{time.monotonic() - self._started:6.0f} s  {figure}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
