"""What a person sees while a job runs: on a terminal a live line and a bar below the log's lines,
elsewhere a line of the log at least every ten seconds. Knows nothing of what is counted.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from shardrank.jobs.run.progress import Stage

logger = logging.getLogger(__name__)

LOG_EVERY_S = 9.0
"""It is looked at once in _TICK_S."""
_TICK_S = 1.0

SHOW_CURSOR = "\x1b[?25h"
"""For who leaves without an end: a live display hides it."""


class Display:
    """Where a job says what it is at; what is said is seen until something else is."""

    def __init__(self, is_live: bool) -> None:
        self._is_live = is_live
        self._stage: Stage | None = None
        self._poll: Callable[[], None] = _nothing
        self._silent_s = 0.0
        self._logged: tuple[Stage, int] | None = None
        self._lock = threading.Lock()

    def show(self, stage: Stage) -> None:
        with self._lock:
            self._stage, self._poll = stage, _nothing

    @contextmanager
    def polled(self, stage: Stage, poll: Callable[[], None]) -> Iterator[None]:
        """Show the stage, and call `poll` now and then to bring its counts up to date, from another
        thread.
        """
        with self._lock:
            self._stage, self._poll = stage, poll
        try:
            yield
        finally:
            with self._lock:  # a poll that is under way ends first
                self._poll = _nothing

    def finish(self, stage: Stage) -> None:
        """Log the stage's last line, if it is not there already."""
        with self._lock:
            self._stage, self._silent_s = None, 0.0
            if self._logged != (stage, stage.num):
                logger.info(stage.line())

    def drawn(self) -> Group:
        """The line, which a narrow terminal folds and never cuts, and below it a bar."""
        stage = self._stage
        if stage is None:
            return Group()
        total = None if stage.total is None else max(1, stage.total)
        line = Text(stage.line(), no_wrap=False, overflow="fold")
        return Group(line, ProgressBar(total=total, completed=stage.num))

    def tick(self, seconds: float) -> None:
        """So many seconds went by."""
        with self._lock:
            self._poll()
            self._silent_s += seconds
            if self._stage is not None and not self._is_live and self._silent_s >= LOG_EVERY_S:
                self._silent_s = 0.0
                self._logged = self._stage, self._stage.num
                logger.info(self._stage.line())


def _nothing() -> None: ...


@contextmanager
def display() -> Iterator[Display]:
    """The display of this process's stderr, for the length of a job."""
    with ExitStack() as stack:
        stderr = stack.enter_context(_held_stderr())
        is_live = stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        shown = Display(is_live)
        stack.enter_context(_ticking(shown))
        if is_live:
            stderr = stack.enter_context(_drawing(shown, stderr))
        stack.enter_context(_logged_to(stderr))
        yield shown


@contextmanager
def _held_stderr() -> Iterator[TextIO]:
    """A stderr of our own: while Ray starts, what is written to the process's is held back."""
    try:
        number = os.dup(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or an object without a file
        yield sys.stderr
        return
    with open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace") as stream:
        yield stream


@contextmanager
def _drawing(shown: Display, stderr: TextIO) -> Iterator[TextIO]:
    """What is written to the yielded stream, or to sys.stderr, stands above the live part."""
    # The window's own size: where COLUMNS says more, lines that are drawn anew would scroll.
    size_is_asked = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    console = Console(file=stderr, force_terminal=True, soft_wrap=True, _environ=size_is_asked)
    with Live(console=console, transient=True, get_renderable=shown.drawn):
        yield sys.stderr


@contextmanager
def _logged_to(stream: TextIO) -> Iterator[None]:
    """What the log writes to the process's stderr goes to `stream`."""
    stderr = (sys.stderr, sys.__stderr__)
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in stderr
    ]
    before = [handler.setStream(stream) for handler in handlers]
    try:
        yield
    finally:
        for handler, was in zip(handlers, before, strict=True):
            handler.setStream(was or handler.stream)


@contextmanager
def _ticking(shown: Display) -> Iterator[None]:
    ended = threading.Event()

    def tick() -> None:
        before = time.monotonic()
        while not ended.wait(_TICK_S):
            now = time.monotonic()
            shown.tick(now - before)
            before = now

    thread = threading.Thread(target=tick, daemon=True, name="display")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
