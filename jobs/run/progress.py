"""What a user sees while the job runs: a live line on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
STEADY_AFTER_S = 20.0


@dataclass(slots=True)
class Meter:
    """Counts of this run; `total_pairs` is an estimate for candidate sets.

    What pairs are grouped by has the name `groups`: queries, or documents in document-major order.
    """

    total_pairs: int
    total_groups: int
    groups: str = "queries"
    num_pairs: int = 0
    num_groups: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    started: float = field(default_factory=time.monotonic)
    first: tuple[float, int, int] | None = None

    def add(self, scored: pa.Table) -> None:
        """Count a table of score rows."""
        self.num_pairs += scored.num_rows
        self.num_tokens += pc.sum(scored["num_tokens"]).as_py() or 0
        self.num_errors += scored.num_rows - scored["error_code"].null_count
        if self.first is None:
            self.first = (time.monotonic(), self.num_pairs, self.num_tokens)

    def rates(self) -> tuple[float, float]:
        """Pairs and tokens a second since the first scores came: starting up is not in them.

        Soon after the first scores, when others may come in a burst, it is since the start.
        """
        now = time.monotonic()
        since, pairs, tokens = self.first or (now, 0, 0)
        if now - since < STEADY_AFTER_S:
            since, pairs, tokens = self.started, 0, 0
        seconds = max(now - since, 1e-3)
        return (self.num_pairs - pairs) / seconds, (self.num_tokens - tokens) / seconds

    @property
    def eta_s(self) -> float | None:
        pairs_per_s, _ = self.rates()
        if not pairs_per_s:
            return None
        return max(0, self.total_pairs - self.num_pairs) / pairs_per_s

    def line(self) -> str:
        eta = "--" if self.eta_s is None else duration(self.eta_s)
        pairs_per_s, tokens_per_s = self.rates()
        return (
            f"{self.num_groups:,}/{self.total_groups:,} {self.groups} · {self.num_pairs:,} pairs · "
            f"{pairs_per_s:,.1f} pairs/s · {tokens_per_s:,.0f} tokens/s · ETA {eta} · "
            f"{self.num_errors:,} errors"
        )


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Display:
    """Call `update` as often as you like; it draws or logs when it is time."""

    def __init__(self, meter: Meter, live: Live | None) -> None:
        self._meter = meter
        self._live = live
        self._last_logged = time.monotonic()

    def update(self) -> None:
        if self._live is not None:
            self._live.update(_drawn(self._meter))
        elif time.monotonic() - self._last_logged >= LOG_EVERY_S:
            self._last_logged = time.monotonic()
            logger.info(self._meter.line())


def _drawn(meter: Meter) -> Group:
    """A bar, and the line below it, which a narrow terminal may fold but never cuts."""
    bar = ProgressBar(total=max(1, meter.total_pairs), completed=meter.num_pairs)
    return Group(bar, Text(meter.line()))


@contextmanager
def display(meter: Meter) -> Iterator[Display]:
    if not sys.stderr.isatty():
        yield Display(meter, None)
        return
    with Live(_drawn(meter), console=Console(stderr=True), transient=True) as live:
        yield Display(meter, live)
