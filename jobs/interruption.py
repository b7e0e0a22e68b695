"""Ctrl-C and SIGTERM end a job, also where Ray swallows the exception or sets its own handler, or a
storage that hangs holds up what is still to be said to it.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shardrank.jobs.command import how_to_go_on
from shardrank.jobs.run.progress import SHOW_CURSOR

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
LEAVES_AFTER_S = 30.0


@contextmanager
def interruptible(command: Sequence[str] = ()) -> Iterator[Callable[[], None]]:
    """Both signals raise KeyboardInterrupt; the yielded function raises it again, once received.
    A command, given by its arguments, ends its process after LEAVES_AFTER_S, whatever is still
    under way: what was half written is no file, and no object.

    A KeyboardInterrupt that arrives inside Ray's compiled code or a callback can be lost there, so
    whoever loops calls the function in between. It also sets the handlers anew: `ray.init` sets one
    that exits, and `ray.shutdown` the system's own, of which Python knows nothing. Outside the main
    thread there are no signals.
    """
    received = threading.Event()
    leaving = threading.Timer(LEAVES_AFTER_S, _leave, [command])
    leaving.daemon = True

    def interrupt(signum: int, frame: Any) -> None:
        is_first = not received.is_set()
        received.set()
        if command and is_first:
            leaving.start()
        raise KeyboardInterrupt

    def check() -> None:
        if received.is_set():
            raise KeyboardInterrupt
        _handle_with(interrupt)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _handle_with(interrupt)
    try:
        yield check
    finally:
        leaving.cancel()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _leave(command: Sequence[str]) -> None:
    stderr = sys.__stderr__ or sys.stderr  # a live display would fold the command
    if stderr.isatty():
        print(SHOW_CURSOR, end="", file=stderr)
    print(
        f"interrupted; after {LEAVES_AFTER_S:g} s something still hangs and is left; "
        + how_to_go_on(command),
        file=stderr,
        flush=True,
    )
    os._exit(130)


def _handle_with(handler: Callable[[int, Any], None]) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)
