"""The units on Ray: scored, collected, written as they complete, verified at the end."""

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from functools import partial
from itertools import islice, pairwise
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shardrank.cluster import private_directory
from shardrank.jobs.cluster import own_errors
from shardrank.jobs.errors import JobError, UnitsFailed
from shardrank.jobs.outputs.budget import Budget
from shardrank.jobs.outputs.by_document import regroup, rows_of, write_by_document
from shardrank.jobs.outputs.done import Remaining, check_strays
from shardrank.jobs.outputs.files import Output, UnitCollector, write_unit
from shardrank.jobs.outputs.manifest import Check, Counts, Manifest
from shardrank.jobs.outputs.scores import lookups_of
from shardrank.jobs.outputs.verify import verify_units
from shardrank.jobs.run.attempts import AttemptLog, RemoteLog
from shardrank.jobs.run.pipeline import Workers, score_units
from shardrank.jobs.run.progress import Display, Meter, Step
from shardrank.jobs.storage import Location, delete_file
from shardrank.jobs.units.documents import DocumentPlan, DocumentUnit
from shardrank.jobs.units.plan import KEPT, PairsUnit, Plan, Unit, unit_name

logger = logging.getLogger(__name__)

_MAX_WRITES_IN_FLIGHT = 64
_VERIFY_UNITS = 16
_POLL_EVERY_S = 5.0

_SHOWN_FAILURES = 5


@dataclass(slots=True)
class Run:
    """A run of the job: what it has to score, with what, and who is told of it. It is shown, and
    noted in the manifest; what the telling raises ends the run.
    """

    plan: Plan
    remaining: Remaining
    workers: Workers
    manifest: Manifest
    budget: Budget
    shown: Display
    check_interruption: Check
    counts: Counts = field(default_factory=Counts)

    @property
    def output(self) -> Output:
        return self.manifest.output

    def score(self) -> None:
        """Score the units and write each as soon as it is complete, over what is there of it. In
        document-major order they are scored by document, and then regrouped by query.
        """
        units, documents = self.remaining.units, self.plan.documents
        if documents is None:
            writer = _Writer(write_unit, self.output, self.plan.input)
            groups = "texts" if self.plan.input.form == "texts" else "queries"
            _score(self, units, groups, writer, lambda rows: rows)
            return
        writer = _Writer(write_by_document, self.output, documents.bucket_places)
        counted = partial(rows_of, documents, units)
        _score(self, self.remaining.documents, "documents", writer, counted)
        _regroup(self, documents)

    def verify(self) -> None:
        """Verify every unit on CPU tasks, also those of runs before this one, and that no file is
        beside theirs.
        """
        task = ray.remote(num_cpus=1)(verify_units)
        units, job_input = self.plan.units, ray.put(self.plan.input)
        starts = range(0, len(units), _VERIFY_UNITS)
        tasks = (task.remote(job_input, self.output, units[i : i + _VERIFY_UNITS]) for i in starts)
        noun = "texts" if self.plan.input.form == "texts" else "pairs"
        step = Step("verified", _num_pairs(units), noun)
        self.counts = Counts.total(_results(self, tasks, step, attrgetter("num_pairs")))
        check_strays(self.output, self.plan)

    def finish(self, gpu_hour_price: float | None) -> None:
        self.manifest.guard()
        # Before _SUCCESS: where only some are gone, all score files are there and suffice.
        self.output.remove_by_document()
        self.output.remove_leftovers()  # of writers that were killed in this run
        pool = self.workers.pool
        self.manifest.finish(self.counts, pool.num_actors * pool.num_gpus, gpu_hour_price)

    def tick(self) -> None:
        """Now and then while something is awaited."""
        self.check_interruption()
        self.manifest.progress()

    def scored(self, rows: pa.Table) -> None:
        """Score rows that came, of any units."""
        lookups = lookups_of(rows)
        if lookups is not None:
            self.manifest.add_lookups(*lookups)

    def written(self, rows: pa.Table) -> None:
        """All rows of the remaining units within what is being written, each once."""
        codes = Counter(rows["error_code"].drop_null().to_pylist())
        codes.pop(KEPT, None)  # counted as the run began
        try:
            self.budget.add(codes, rows["error"].drop_null().to_pylist())
        finally:
            self.manifest.note_errors(self.budget)


def _num_pairs(units: Sequence[Unit] | Sequence[DocumentUnit]) -> int:
    return sum(unit.num_pairs for unit in units)


def _num_groups(unit: Unit | DocumentUnit) -> int:
    return unit.num_documents if isinstance(unit, DocumentUnit) else unit.num_queries


def _score(
    run: Run,
    remaining: Sequence[Unit] | Sequence[DocumentUnit],
    groups: str,
    writer: "_Writer",
    counted: Callable[[pa.Table], pa.Table],
) -> None:
    """Raises UnitsFailed after everything else is written. counted: a unit's rows that are told."""
    if not remaining:
        return
    units: dict[int, Unit | DocumentUnit] = {unit.index: unit for unit in remaining}
    num_groups = sum(map(_num_groups, remaining))
    noun = "texts" if groups == "texts" else "pairs"
    num_actors = run.workers.pool.num_actors
    meter = Meter(_num_pairs(remaining), num_groups, groups, noun, num_actors)
    collector = UnitCollector()
    with own_errors(), _attempt_log() as log:
        failures = _Failures(log, units)
        try:
            with run.shown.polled(meter, partial(_look, log, meter)):
                for scored in score_units(remaining, run.plan.input, run.workers, log):
                    meter.add(scored)
                    meter.groups_of.update(_begun(scored, units))
                    run.scored(scored)
                    for index, rows in collector.add(scored):
                        unit = units.pop(index)
                        writer.write(unit, rows)
                        run.written(counted(rows))
                        meter.groups_of[index] = _num_groups(unit)
                    failures.poll()
                    run.tick()
            run.shown.finish(meter)
        finally:
            writer.wait(0)
        failures.check()


def _look(log: RemoteLog, meter: Meter) -> None:
    with suppress(RayError):  # it is begun again, or the job is at its end
        meter.underway = log.underway()


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
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kept = ray.remote(AttemptLog).options(
        scheduling_strategy=here, num_cpus=0, max_restarts=-1, max_task_retries=-1
    )
    with _journal() as journal:
        actor = kept.remote(journal)
        try:
            yield RemoteLog(actor)
        finally:
            ray.kill(actor)


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
            self._first = self._pending[-1], self._output.file(unit)
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


def _regroup(run: Run, documents: DocumentPlan) -> None:
    """Score files out of those by document, a task a bucket."""
    units, output = run.remaining.units, run.output
    missing = {unit.index for unit in output.remaining(units)}
    for unit in units:
        # It is to be made again, and what is there would be kept, which here it need not be.
        if unit.index not in missing and not unit.kept:
            run.tick()
            delete_file(output.file(unit))
    task = ray.remote(num_cpus=1, max_retries=5)(regroup)
    files = ray.put([output.file(unit) for unit in run.remaining.needed])
    common = output, ray.put(run.plan.input), files
    tasks = (task.remote(*common, *bucket) for bucket in _buckets(documents, units))
    _results(run, tasks, Step("regrouped by query", _num_pairs(units)), int)


def _results(
    run: Run, tasks: Iterator[Any], step: Step, num_pairs: Callable[[Any], int]
) -> list[Any]:
    """What tasks return, in no order; they are begun as there are CPUs for them.

    The step is shown, with the pairs of each result; the run is told that time goes by.
    """
    max_in_flight = max(1, int(ray.cluster_resources().get("CPU", 1)))
    results: list[Any] = []
    run.shown.show(step)
    with own_errors():
        pending = list(islice(tasks, max_in_flight))
        while pending:
            finished, pending = ray.wait(pending, timeout=1)
            for found in ray.get(finished):
                step.num += num_pairs(found)
                results.append(found)
            run.tick()
            pending += islice(tasks, max_in_flight - len(pending))
    run.shown.finish(step)
    return results


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
