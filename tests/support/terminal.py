"""A terminal of a given size, with what a person sees in it of a command."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence

import pyte

ROWS = 24


class Terminal:
    """A command in a window of its own; environment: what is set besides this process's."""

    def __init__(
        self, command: Sequence[str], columns: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, ROWS, history=1_000, ratio=1)
        self._stream = pyte.ByteStream(self._screen)
        self._end, window = pty.openpty()
        fcntl.ioctl(window, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        settings = termios.tcgetattr(window)
        settings[3] &= ~termios.ECHO  # what is typed is seen by the command alone
        termios.tcsetattr(window, termios.TCSANOW, settings)
        self.process = subprocess.Popen(
            command,
            stdin=window,
            stdout=window,
            stderr=window,
            env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
            start_new_session=True,
        )
        os.close(window)

    @property
    def lines(self) -> list[str]:
        """All lines so far, those that scrolled away too, without blanks at their ends."""
        above = ["".join(line[x].data for x in sorted(line)) for line in self._screen.history.top]
        lines = [line.rstrip() for line in (*above, *self._screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        """What is seen, in one line: where the window is narrow, words stand in the next line."""
        return " ".join(self.lines)

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    @property
    def whole(self) -> str:
        """What is seen, as it is copied: a line as long as the window goes on in the next."""
        return "".join(
            line if len(line) == self._screen.columns else line + "\n" for line in self.lines
        )

    def watch(self, is_seen: Callable[[str], bool] = lambda text: False, limit_s: float = 120):
        """Look on until what is seen is wanted (True), or the command has ended (False)."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                self._stream.feed(os.read(self._end, 65_536))
            except OSError:  # nobody has the window open any more
                self.process.wait(timeout=limit_s)
                return False
            if is_seen(self.text):
                return True
        raise AssertionError(f"not seen within {limit_s:g} s:\n" + "\n".join(self.lines))
