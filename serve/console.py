"""What the server says where it was started, from whichever of its processes.

`shardrank serve` makes a named pipe and shows the lines that come; the replicas and proxies of its
Ray write to it. Where another command started the Ray, lines go to each process's own output, which
Ray keeps among its logs.
"""

import contextlib
import os
import sys
import threading
from functools import cache

PIPE_VARIABLE = "SHARDRANK_CONSOLE"
_OUT, _ERR, _END = b"1", b"2", b"0"
_MAX_BYTES = 4_096
"""So many bytes at once come out of a pipe as they went in, whoever else writes (PIPE_BUF)."""
_PIPE_BYTES = 1 << 20
"""Lines that the command has not shown yet. No process waits for it: over this they are lost."""


class Console:
    """The command's end: a thread that shows what the others say."""

    def __init__(self, path: str) -> None:
        os.mkfifo(path, 0o600)
        # Open for writing too, or the pipe would end when the last of the others does.
        self._pipe = os.open(path, os.O_RDWR)
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):  # what this user may have at most
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._thread = threading.Thread(target=self._show, name="console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.write(self._pipe, _END + b"\n")
        self._thread.join()

    def _show(self) -> None:
        with open(self._pipe, "rb") as lines:
            for line in lines:
                if line.startswith(_END):
                    return
                stream = sys.stdout if line.startswith(_OUT) else sys.stderr
                with contextlib.suppress(OSError):  # whoever read ours has gone
                    print(line[1:].decode("utf-8", "replace"), end="", file=stream, flush=True)


def log(line: str) -> None:
    """On stdout: a line of the access log."""
    _write(_OUT, line)


def say(line: str) -> None:
    """On stderr: how starting goes."""
    _write(_ERR, line)


def _write(stream: bytes, line: str) -> None:
    path = os.environ.get(PIPE_VARIABLE)
    try:
        if path is None:
            print(line, file=sys.stdout if stream == _OUT else sys.stderr, flush=True)
        else:
            os.write(_opened(path), stream + line.encode()[: _MAX_BYTES - 2] + b"\n")
    except OSError:
        pass  # nobody listens any more, or not fast enough


@cache
def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
