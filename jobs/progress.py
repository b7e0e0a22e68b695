"""What a user sees while the job runs: a live line on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


@dataclass(slots=True)
class Meter:
    """Counts of this run; `total_pairs` is an estimate for candidate sets."""

    total_pairs: int
    total_queries: int
    num_pairs: int = 0
    num_queries: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    started: float = field(default_factory=time.monotonic)
    first_scored: float | None = None

    def add(self, scored: pa.Table) -> None:
        """Count a table of score rows."""
        if self.first_scored is None:
            self.first_scored = time.monotonic()
        self.num_pairs += scored.num_rows
        self.num_tokens += sum(scored["num_tokens"].to_pylist())
        self.num_errors += scored.num_rows - scored["error_code"].null_count

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def pairs_per_s(self) -> float:
        return self.num_pairs / max(self.seconds, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """From the rate since the start, start-up included, so that it errs on the late side."""
        if not self.num_pairs:
            return None
        return max(0, self.total_pairs - self.num_pairs) / self.pairs_per_s

    def line(self) -> str:
        eta = "--" if self.eta_s is None else duration(self.eta_s)
        return (
            f"{self.num_queries:,}/{self.total_queries:,} queries · {self.num_pairs:,} pairs · "
            f"{self.pairs_per_s:,.1f} pairs/s · {self.num_tokens / max(self.seconds, 1e-9):,.0f} "
            f"tokens/s · ETA {eta} · {self.num_errors:,} errors"
        )


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Display:
    """Call `update` as often as you like; it draws or logs when it is time."""

    def __init__(self, meter: Meter, progress: Progress | None) -> None:
        self._meter = meter
        self._progress = progress
        self._task = progress.add_task("starting", total=meter.total_pairs) if progress else None
        self._last_logged = time.monotonic()

    def update(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, completed=self._meter.num_pairs, description=self._meter.line()
            )
        elif time.monotonic() - self._last_logged >= LOG_EVERY_S:
            self._last_logged = time.monotonic()
            logger.info(self._meter.line())


@contextmanager
def display(meter: Meter) -> Iterator[Display]:
    if not sys.stderr.isatty():
        yield Display(meter, None)
        return
    columns = (BarColumn(30), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Display(meter, progress)
