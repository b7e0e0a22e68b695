"""The units on Ray: scored, collected, written as they complete, verified at the end."""

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from functools import partial
from itertools import islice, pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shardrank.cluster import private_directory
from shardrank.jobs.cluster import own_errors
from shardrank.jobs.errors import JobError, UnitsFailed
from shardrank.jobs.outputs.files import Output, UnitCollector, write_unit
from shardrank.jobs.outputs.parts import regroup, rows_of, write_part
from shardrank.jobs.outputs.verify import Counts, verify_units
from shardrank.jobs.run.attempts import AttemptLog, RemoteLog
from shardrank.jobs.run.display import Display
from shardrank.jobs.run.pipeline import Workers, score_units
from shardrank.jobs.run.progress import Meter, Step
from shardrank.jobs.storage import Location, delete_file
from shardrank.jobs.units.documents import DocumentPlan, DocumentUnit
from shardrank.jobs.units.plan import PairsUnit, Plan, Unit, unit_name

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
        """All rows of the remaining units within what is being written, each once."""


def score_remaining(
    plan: Plan,
    remaining: Sequence[Unit],
    output: Output,
    workers: Workers,
    watcher: Watcher,
    shown: Display,
    stale_parts: Collection[str] = (),
) -> None:
    """Score the units and write each as soon as it is complete, over what is there of it.

    stale_parts: names of parts that are to be scored again.
    """
    if plan.documents is not None:
        _score_documents(
            plan, plan.documents, remaining, output, workers, watcher, shown, stale_parts
        )
        return
    meter = Meter(
        sum(unit.num_pairs for unit in remaining),
        sum(unit.num_queries for unit in remaining),
        num_actors=workers.pool.num_actors,
    )
    writer = _Writer(write_unit, output, plan.input)
    _score(plan, remaining, workers, meter, writer, watcher, shown, lambda rows: rows)


def _score_documents(
    plan: Plan,
    documents: DocumentPlan,
    remaining: Sequence[Unit],
    output: Output,
    workers: Workers,
    watcher: Watcher,
    shown: Display,
    stale_parts: Collection[str],
) -> None:
    """Score into parts what the remaining units need, then regroup the parts by query."""
    needed = documents.units_with([unit.index for unit in remaining])
    absent = {unit.index for unit in output.remaining_parts(needed)}
    missing = [unit for unit in needed if unit.index in absent or unit_name(unit) in stale_parts]
    meter = Meter(
        sum(unit.num_pairs for unit in missing),
        sum(unit.num_documents for unit in missing),
        "documents",
        workers.pool.num_actors,
    )
    writer = _Writer(write_part, output, documents.bucket_places)
    counted = partial(rows_of, documents, remaining)
    _score(plan, missing, workers, meter, writer, watcher, shown, counted)
    _regroup(plan, documents, remaining, needed, output, watcher, shown)


def _score(
    plan: Plan,
    remaining: Sequence[Unit] | Sequence[DocumentUnit],
    workers: Workers,
    meter: Meter,
    writer: "_Writer",
    watcher: Watcher,
    shown: Display,
    counted: Callable[[pa.Table], pa.Table],
) -> None:
    """Raises UnitsFailed after everything else is written. counted: a unit's rows that are told."""
    if not remaining:
        return
    units = {unit.index: unit for unit in remaining}
    collector = UnitCollector()
    with own_errors(), _attempt_log() as log:
        failures = _Failures(log, units)
        try:
            with shown.polled(meter, partial(_look, log, meter)):
                for scored in score_units(remaining, plan.input, workers, log):
                    meter.add(scored)
                    meter.groups_of.update(_begun(scored, units))
                    watcher.scored(scored)
                    for index, rows in collector.add(scored):
                        unit = units.pop(index)
                        writer.write(unit, rows)
                        watcher.written(counted(rows))
                        meter.groups_of[index] = _num_groups(unit)
                    failures.poll()
                    watcher.tick()
            shown.finish(meter)
        finally:
            writer.wait(0)
        failures.check()


def _look(log: RemoteLog, meter: Meter) -> None:
    with suppress(RayError):  # it is begun again, or the job is at its end
        meter.underway = log.underway()


def _num_groups(unit: Unit | DocumentUnit) -> int:
    return unit.num_documents if isinstance(unit, DocumentUnit) else unit.num_queries


def _begun(scored: pa.Table, units: Mapping[int, Any]) -> Counter[int]:
    """Unit -> its queries, or documents in document-major order, whose first row is among these."""
    numbers = scored["unit"].to_numpy()
    if "doc_index" in scored.schema.names:
        return Counter(numbers[scored["doc_index"].to_numpy() == 0].tolist())
    places, found = scored["place"].to_numpy(), Counter[int]()
    for unit in np.unique(numbers).tolist():
        found[unit] = int(np.isin(places[numbers == unit], units[unit].first_places()).sum())
    return found


@contextmanager
def _attempt_log() -> Iterator[RemoteLog]:
    """On the driver's own node: where that goes, the job goes. So does its journal."""
    with _journal() as journal:
        yield from _logging_to(journal)


@contextmanager
def _journal() -> Iterator[str]:
    """A file that nobody else reads; those of jobs that were killed are removed."""
    folder = private_directory(os.path.join(tempfile.gettempdir(), f"shardrank-{os.getuid()}"))
    begun = os.open(folder, os.O_RDONLY)
    flock(begun, LOCK_EX)  # one job at a time gets so far
    for name in os.listdir(folder):
        with suppress(OSError), open(os.path.join(folder, name)) as left:
            flock(left, LOCK_EX | LOCK_NB)  # which its job holds while it lives
            os.unlink(left.name)
    made, path = tempfile.mkstemp(prefix="attempts-", suffix=".jsonl", dir=folder)  # of mode 0600
    flock(made, LOCK_SH)
    os.close(begun)
    try:
        yield path
    finally:
        os.close(made)
        with suppress(OSError):
            os.unlink(path)


def _logging_to(journal: str) -> Iterator[RemoteLog]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kept = ray.remote(AttemptLog)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = kept.options(scheduling_strategy=here, **options).remote(journal)
    try:
        yield RemoteLog(actor)
    finally:
        ray.kill(actor)


class _Failures:
    """Units that could not be read, as the workers report them."""

    def __init__(self, log: RemoteLog, units: Mapping[int, Unit | DocumentUnit]) -> None:
        self._log = log
        self._units = units  # those that are not written yet
        self._known: dict[int, str] = {}
        self._polled = time.monotonic()

    def poll(self) -> None:
        if time.monotonic() - self._polled >= _POLL_EVERY_S:
            self._polled = time.monotonic()
            self._learn()

    def _learn(self) -> None:
        for index, message in self._log.failures().items():
            if index in self._units and index not in self._known:
                self._known[index] = message
                logger.warning(message)

    def check(self) -> None:
        """Raises UnitsFailed if a unit is missing, whatever it is that it died of."""
        if not self._units:
            return
        self._learn()
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
        self._first: tuple[Any, Location] | None = None
        self._is_seen = False

    def write(self, unit: Unit | DocumentUnit, rows: pa.Table) -> None:
        self._pending.append(self._task.remote(self._output, self._common, unit, rows))
        if self._first is None:
            output = self._output
            place = (
                output.part_file(unit)
                if isinstance(unit, DocumentUnit)
                else output.scores_file(unit)
            )
            self._first = self._pending[-1], place
        self.wait(_MAX_WRITES_IN_FLIGHT)

    def wait(self, num_left: int) -> None:
        """Until at most num_left writes are under way. Raises what a write raised."""
        excess = len(self._pending) - num_left
        if self._pending:
            finished, self._pending = ray.wait(
                self._pending, num_returns=max(1, excess), timeout=None if excess > 0 else 0
            )
            ray.get(finished)
            self._look_for_first(finished)

    def _look_for_first(self, finished: Sequence[Any]) -> None:
        """Raises JobError where the nodes do not share the output: known now, not at the end."""
        if self._is_seen or self._first is None or self._first[0] not in finished:
            return
        self._is_seen = True
        place = self._first[1]
        if not place.exists():
            raise JobError(
                f"{place} was written on another node and is not here: --output must be a place "
                "that all nodes share, such as NFS, s3:// or gs://"
            )


def _regroup(
    plan: Plan,
    documents: DocumentPlan,
    remaining: Sequence[Unit],
    needed: Sequence[DocumentUnit],
    output: Output,
    watcher: Watcher,
    shown: Display,
) -> None:
    """Score files out of parts, a task a bucket."""
    missing = {unit.index for unit in output.remaining(remaining)}
    for unit in remaining:
        # It is to be made again, and what is there would be kept, which here it need not be.
        if unit.index not in missing and not unit.kept:
            watcher.tick()
            delete_file(output.scores_file(unit))
    task = ray.remote(num_cpus=1, max_retries=5)(regroup)
    common = ray.put(plan.input), ray.put([output.part_file(unit) for unit in needed])
    tasks = (task.remote(output, *common, *bucket) for bucket in _buckets(documents, remaining))
    step = Step("regrouped by query", sum(unit.num_pairs for unit in remaining))
    shown.show(step)
    for num_pairs in _results(tasks, watcher):
        step.num += num_pairs
    shown.finish(step)


def _results(tasks: Iterator[Any], watcher: Watcher) -> Iterator[Any]:
    """What tasks return, in no order; they are begun as they are taken, as many as there are CPUs.

    The watcher is told that time goes by.
    """
    max_in_flight = max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: list[Any] = []
    with own_errors():
        while True:
            pending += islice(tasks, max_in_flight - len(pending))
            if not pending:
                return
            finished, pending = ray.wait(pending, timeout=1)
            yield from ray.get(finished)
            watcher.tick()


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


def verify_all(plan: Plan, output: Output, watcher: Watcher, shown: Display) -> Counts:
    """Verify every unit on CPU tasks, also those of runs before this one."""
    task = ray.remote(num_cpus=1)(verify_units)
    job_input = ray.put(plan.input)
    starts = range(0, len(plan.units), _VERIFY_UNITS)
    tasks = (task.remote(job_input, output, plan.units[i : i + _VERIFY_UNITS]) for i in starts)
    step = Step("verified", sum(unit.num_pairs for unit in plan.units))
    shown.show(step)
    counts = []
    for found in _results(tasks, watcher):
        counts.append(found)
        step.num += found.num_pairs
    shown.finish(step)
    return Counts.total(counts)
