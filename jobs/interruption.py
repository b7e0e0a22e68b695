"""Ctrl-C and SIGTERM end a job, also where Ray swallows the exception or sets its own handler."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Both signals raise KeyboardInterrupt; the yielded function raises it again, once received.

    A KeyboardInterrupt that arrives inside Ray's compiled code or a callback can be lost there, so
    whoever loops calls the function in between. It also sets the handlers anew: `ray.init` sets one
    that exits, and `ray.shutdown` the system's own, of which Python knows nothing. Outside the main
    thread there are no signals.
    """
    received = threading.Event()

    def interrupt(signum: int, frame: Any) -> None:
        received.set()
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
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _handle_with(handler: Callable[[int, Any], None]) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)
