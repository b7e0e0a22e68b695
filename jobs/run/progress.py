"""What is counted while a job runs, and the line that says it. Knows nothing of terminals."""

import time
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

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

    What pairs are grouped by has the name `groups`: queries, or documents in document-major order.
    """

    total_pairs: int
    total_groups: int
    groups: str = "queries"
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
        counts = f"{self.num:,}/{self.total:,} pairs · {self.num_groups:,}/{self.total_groups:,} "
        if not self.num:
            return f"{counts}{self.groups} · {self._waiting()}"
        eta = "--" if self.eta_s is None else duration(self.eta_s)
        pairs_per_s, tokens_per_s = self.rates()
        return (
            f"{counts}{self.groups} · {pairs_per_s:,.1f} pairs/s · {tokens_per_s:,.0f} tokens/s · "
            f"ETA {eta} · {self.num_errors:,} errors"
        )

    def _waiting(self) -> str:
        """What the first scores wait for."""
        elapsed = duration(time.monotonic() - self.started)
        ready = f"{self.underway.num_ready} of {self.num_actors} scoring actors ready"
        return f"{self.underway.num_prepared:,} pairs prepared, {ready} · {elapsed}"


def counted(num: int, noun: str) -> str:
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
