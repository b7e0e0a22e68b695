"""What is counted while a job runs, the line that says it, and how a person sees it: on a terminal
a live line and a bar below the log's lines, elsewhere a line of the log at least every ten seconds.
"""

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

logger = logging.getLogger(__name__)

STEADY_AFTER_S = 20.0


class Stage(Protocol):
    """What a job is at. `total` is None where nobody can say how much there is."""

    @property
    def num(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    def line(self) -> str: ...


@dataclass(slots=True)
class Step:
    """Some of a job's work, counted in nouns if a total is known."""

    doing: str
    total: int | None = None
    noun: str = "pairs"
    num: int = 0
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        if self.total is None:
            return f"{self.doing} · {duration(time.monotonic() - self.started)}"
        return f"{self.doing}: {self.num:,}/{self.total:,} {self.noun}"


@dataclass(frozen=True, slots=True)
class Underway:
    """What the workers are at: the scoring actors that have their model, the pairs that were
    prepared, and of each (unit, chunk) that an actor has, the pairs that were scored.
    """

    num_ready: int = 0
    num_prepared: int = 0
    scored: Mapping[tuple[Hashable, ...], int] = field(default_factory=dict)


@dataclass(slots=True)
class Meter:
    """Counts of this run; `total_pairs` is an estimate for candidate sets.

    What pairs are grouped by has the name `groups`: queries, or documents in document-major order;
    texts to embed are their own groups. noun: of pairs, or texts.
    """

    total_pairs: int
    total_groups: int
    groups: str = "queries"
    noun: str = "pairs"
    num_actors: int = 1
    num_pairs: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    underway: Underway = field(default_factory=Underway)
    started: float = field(default_factory=time.monotonic)
    first: tuple[float, int, int] | None = None
    most: int = 0
    came: set[tuple[Hashable, ...]] = field(default_factory=set)
    groups_of: Counter[int] = field(default_factory=Counter)

    def add(self, scored: pa.Table) -> None:
        """Count a table of score rows."""
        self.came.update(
            zip(*(scored[name].to_pylist() for name in ("unit", "chunk")), strict=True)
        )
        self.num_pairs += scored.num_rows
        self.num_tokens += pc.sum(scored["num_tokens"]).as_py() or 0
        self.num_errors += scored.num_rows - scored["error_code"].null_count
        if self.first is None:
            self.first = (time.monotonic(), self.num, self.num_tokens)

    @property
    def num(self) -> int:
        """Pairs that came, or are scored and will: it never falls, whatever dies on the way."""
        scored = sum(num for each, num in self.underway.scored.items() if each not in self.came)
        self.most = max(self.most, self.num_pairs + scored)
        return self.most

    @property
    def total(self) -> int:
        return max(self.total_pairs, self.num)

    @property
    def num_groups(self) -> int:
        return self.groups_of.total()

    def rates(self) -> tuple[float, float]:
        """Pairs and tokens a second since the first scores came: starting up is not in them.

        Soon after the first scores, when others may come in a burst, it is since the start.
        """
        now = time.monotonic()
        since, pairs, tokens = self.first or (now, 0, 0)
        if now - since < STEADY_AFTER_S:
            since, pairs, tokens = self.started, 0, 0
        seconds = max(now - since, 1e-3)
        return (self.num - pairs) / seconds, (self.num_tokens - tokens) / seconds

    @property
    def eta_s(self) -> float | None:
        pairs_per_s, _ = self.rates()
        if not pairs_per_s:
            return None
        return max(0, self.total_pairs - self.num) / pairs_per_s

    def line(self) -> str:
        counts = f"{self.num:,}/{self.total:,} {self.noun}"
        if self.groups != self.noun:
            counts += f" · {self.num_groups:,}/{self.total_groups:,} {self.groups}"
        if not self.num:
            return f"{counts} · {self._waiting()}"
        eta = "--" if self.eta_s is None else duration(self.eta_s)
        pairs_per_s, tokens_per_s = self.rates()
        return (
            f"{counts} · {pairs_per_s:,.1f} {self.noun}/s · {tokens_per_s:,.0f} tokens/s · "
            f"ETA {eta} · {self.num_errors:,} errors"
        )

    def _waiting(self) -> str:
        """What the first scores wait for."""
        elapsed = duration(time.monotonic() - self.started)
        ready = f"{self.underway.num_ready} of {self.num_actors} scoring actors ready"
        return f"{self.underway.num_prepared:,} {self.noun} prepared, {ready} · {elapsed}"


def counted(num: int, noun: str) -> str:
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


LOG_EVERY_S = float(os.environ.get("SHARDRANK_LOG_EVERY_S", 9.0))
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


def window_environment() -> dict[str, str]:
    """The environment in which rich asks for the window's own size: where COLUMNS says more, lines
    that are drawn anew would scroll.
    """
    return {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}


@contextmanager
def _drawing(shown: Display, stderr: TextIO) -> Iterator[TextIO]:
    """What is written to the yielded stream, or to sys.stderr, stands above the live part."""
    window = window_environment()
    console = Console(file=stderr, force_terminal=True, soft_wrap=True, _environ=window)
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
