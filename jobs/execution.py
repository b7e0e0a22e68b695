"""The units on Ray: scored, collected, written as they complete, verified at the end."""

import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.exceptions import RayError, UserCodeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.attempts import AttemptLog, RemoteLog
from jobs.documents import DocumentPlan, DocumentUnit
from jobs.errors import JobError, UnitsFailed
from jobs.outputs import Output, UnitCollector, write_unit
from jobs.parts import regroup, write_part
from jobs.pipeline import Workers, score_units
from jobs.progress import LOG_EVERY_S, Meter, display
from jobs.units import PairsUnit, Plan, Unit, unit_name
from jobs.verify import Counts, verify_units

logger = logging.getLogger(__name__)

_MAX_WRITES_IN_FLIGHT = 64
_VERIFY_UNITS = 16
_POLL_EVERY_S = 5.0

_SHOWN_FAILURES = 5


class Watcher(Protocol):
    """Who is told what happens; what it raises ends the run."""

    def tick(self) -> None:
        """Now and then while something is awaited."""

    def scored(self, rows: pa.Table) -> None:
        """Score rows that came, of any units."""

    def written(self, rows: pa.Table) -> None:
        """All rows of a unit that is being written."""

    def failed(self, num_pairs: int) -> None:
        """A unit that cannot be read."""


def score_remaining(
    plan: Plan, remaining: Sequence[Unit], output: Output, workers: Workers, watcher: Watcher
) -> None:
    """Score the units and write each as soon as it is complete."""
    if plan.documents is not None:
        _score_documents(plan, plan.documents, remaining, output, workers, watcher)
        return
    meter = Meter(
        sum(unit.num_pairs for unit in remaining), sum(unit.num_queries for unit in remaining)
    )
    _score(plan, remaining, workers, meter, _Writer(write_unit, output, plan.input), watcher)


def _score_documents(
    plan: Plan,
    documents: DocumentPlan,
    remaining: Sequence[Unit],
    output: Output,
    workers: Workers,
    watcher: Watcher,
) -> None:
    """Score into parts what the remaining units need, then regroup the parts by query."""
    needed = documents.units_with([unit.index for unit in remaining])
    missing = output.remaining_parts(needed)
    meter = Meter(
        sum(unit.num_pairs for unit in missing),
        sum(unit.num_documents for unit in missing),
        "documents",
    )
    writer = _Writer(write_part, output, documents.bucket_places)
    _score(plan, missing, workers, meter, writer, watcher)
    _regroup(plan, documents, remaining, needed, output, watcher)


def _score(
    plan: Plan,
    remaining: Sequence[Unit] | Sequence[DocumentUnit],
    workers: Workers,
    meter: Meter,
    writer: "_Writer",
    watcher: Watcher,
) -> None:
    """Raises UnitsFailed after everything else is written."""
    if not remaining:
        return
    units = {unit.index: unit for unit in remaining}
    collector = UnitCollector()
    with _ray_errors(), display(meter) as shown, _attempt_log() as log:
        failures = _Failures(log, units, watcher)
        try:
            for scored in score_units(remaining, plan.input, workers, log):
                meter.add(scored)
                watcher.scored(scored)
                for index, rows in collector.add(scored):
                    unit = units.pop(index)
                    writer.write(unit, rows)
                    watcher.written(rows)
                    meter.num_groups += (
                        unit.num_documents if isinstance(unit, DocumentUnit) else unit.num_queries
                    )
                shown.update()
                failures.poll()
                watcher.tick()
        finally:
            writer.wait(0)
        failures.check()
    logger.info(meter.line())


@contextmanager
def _attempt_log() -> Iterator[RemoteLog]:
    """On the driver's own node: where that goes, the job goes. So does its journal."""
    journal = os.path.join(tempfile.gettempdir(), f"shardrank-attempts-{uuid.uuid4().hex}.jsonl")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kept = ray.remote(AttemptLog)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = kept.options(scheduling_strategy=here, **options).remote(journal)
    try:
        yield RemoteLog(actor)
    finally:
        ray.kill(actor)
        with suppress(OSError):
            os.unlink(journal)


class _Failures:
    """Units that could not be read, as the workers report them."""

    def __init__(
        self, log: RemoteLog, units: Mapping[int, Unit | DocumentUnit], watcher: Watcher
    ) -> None:
        self._log = log
        self._units = units  # those that are not written yet
        self._watcher = watcher
        self._known: dict[int, str] = {}
        self._polled = time.monotonic()

    def poll(self) -> None:
        if time.monotonic() - self._polled >= _POLL_EVERY_S:
            self._polled = time.monotonic()
            for num_pairs in self._new():
                self._watcher.failed(num_pairs)

    def _new(self) -> Iterator[int]:
        """The pairs of each unit that has failed since it was last asked."""
        for index, message in self._log.failures().items():
            if index in self._units and index not in self._known:
                self._known[index] = message
                logger.warning(message)
                yield self._units[index].num_pairs

    def check(self) -> None:
        """Raises UnitsFailed if a unit is missing, whatever it is that it died of."""
        if not self._units:
            return
        for _ in self._new():
            pass
        messages = [
            self._known.get(index, f"{unit_name(unit)}: it never came back")
            for index, unit in self._units.items()
        ]
        shown = "\n  ".join(messages[:_SHOWN_FAILURES])
        more = len(messages) - _SHOWN_FAILURES
        raise UnitsFailed(
            f"{len(messages)} units have no rows, all others are written:\n  {shown}"
            + (f"\n  and {more} more" if more > 0 else "")
        )


class _Writer:
    """Writes units on CPU tasks, a bounded number at a time; `common` are the first arguments."""

    def __init__(self, write: Callable[..., None], output: Output, common: Any) -> None:
        self._task = ray.remote(num_cpus=0, max_retries=5)(write)
        self._common = ray.put(common)
        self._output = output
        self._pending: list[Any] = []

    def write(self, unit: Unit | DocumentUnit, rows: pa.Table) -> None:
        self._pending.append(self._task.remote(self._output, self._common, unit, rows))
        self.wait(_MAX_WRITES_IN_FLIGHT)

    def wait(self, num_left: int) -> None:
        """Until at most num_left writes are under way. Raises what a write raised."""
        excess = len(self._pending) - num_left
        if self._pending:
            finished, self._pending = ray.wait(
                self._pending, num_returns=max(1, excess), timeout=None if excess > 0 else 0
            )
            ray.get(finished)


def _regroup(
    plan: Plan,
    documents: DocumentPlan,
    remaining: Sequence[Unit],
    needed: Sequence[DocumentUnit],
    output: Output,
    watcher: Watcher,
) -> None:
    """Score files out of parts, a task a bucket, as many at a time as there are CPUs."""
    task = ray.remote(num_cpus=1, max_retries=5)(regroup)
    common = ray.put(plan.input), ray.put([output.part_file(unit) for unit in needed])
    max_in_flight = max(1, int(ray.cluster_resources().get("CPU", 1)))
    total = sum(unit.num_pairs for unit in remaining)
    pending: list[Any] = []
    num_pairs, logged = 0, time.monotonic()
    buckets = _buckets(documents, remaining)
    with _ray_errors():
        while True:
            while len(pending) < max_in_flight and buckets:
                pending.append(task.remote(output, *common, *buckets.pop(0)))
            if not pending:
                break
            finished, pending = ray.wait(pending, timeout=1)
            num_pairs += sum(ray.get(finished))
            watcher.tick()
            if not pending and not buckets or time.monotonic() - logged >= LOG_EVERY_S:
                logged = time.monotonic()
                logger.info(f"regrouped by query: {num_pairs:,}/{total:,} pairs")


def _buckets(
    documents: DocumentPlan, remaining: Sequence[Unit]
) -> list[tuple[int, list[tuple[int, PairsUnit]]]]:
    """(bucket, its remaining units with their first places), those without any left out."""
    units = {unit.index: unit for unit in remaining if isinstance(unit, PairsUnit)}
    buckets = []
    for bucket, (low, high) in enumerate(pairwise(documents.bucket_starts)):
        placed = [(documents.unit_starts[i], units[i]) for i in range(low, high) if i in units]
        if placed:
            buckets.append((bucket, placed))
    return buckets


def verify_all(plan: Plan, output: Output) -> Counts:
    """Verify every unit on CPU tasks, also those of runs before this one."""
    task = ray.remote(num_cpus=1)(verify_units)
    job_input = ray.put(plan.input)
    parts = [plan.units[i : i + _VERIFY_UNITS] for i in range(0, len(plan.units), _VERIFY_UNITS)]
    with _ray_errors():
        return Counts.total(ray.get([task.remote(job_input, output, part) for part in parts]))


@contextmanager
def _ray_errors() -> Iterator[None]:
    """What went wrong inside a worker, without Ray's wrapping."""
    try:
        yield
    except RayError as error:
        raise _own_error(error) from error


def _own_error(error: BaseException) -> JobError:
    """Our own error inside Ray's, or the last line that any of them says."""
    sentence = type(error).__name__
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, JobError) and not isinstance(seen, RayError):
            return seen  # Ray's error is one of ours too, but says the whole traceback
        if type(seen) is not UserCodeException:  # which says how to configure Ray, not what failed
            sentence = _last_line(str(seen)) or sentence
        seen = getattr(seen, "cause", None) or seen.__cause__
    return JobError(f"a worker failed: {sentence}")


def _last_line(text: str) -> str:
    """Of a traceback's text, the first exception of a chain: what comes of it is Ray's."""
    first = text.partition("\nThe above exception was the direct cause")[0]
    first = first.partition("\nFailed to apply UDF transform")[0]
    return next((line.strip() for line in reversed(first.splitlines()) if line.strip()), "")
