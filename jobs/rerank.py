"""The job from end to end: hold, plan, resume, score, verify, finish.

`python -m shardrank.jobs.rerank` is the command `shardrank rerank`.
"""

import logging
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardrank.actors.config import RerankerConfig
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.interruption import interruptible
from shardrank.jobs.outputs.budget import Budget, MaxErrors
from shardrank.jobs.outputs.done import find_remaining
from shardrank.jobs.outputs.files import MANIFEST, Output, write_trec_run
from shardrank.jobs.outputs.lease import holder_of, leased
from shardrank.jobs.outputs.manifest import Check, Counts, Manifest
from shardrank.jobs.planning import PlannedJob, plan_job, resume
from shardrank.jobs.run.engine import Engine, own_engine
from shardrank.jobs.run.progress import Display, Step, counted, display
from shardrank.jobs.storage import delete_file
from shardrank.jobs.units.order import WantedOrder
from shardrank.jobs.units.plan import DEFAULT_UNIT_PAIRS

if TYPE_CHECKING:  # Ray takes seconds to import, and a refusal needs none of it
    from shardrank.jobs.run.execution import Run
    from shardrank.jobs.run.pool import Pool

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the command says beside the reranker's own config."""

    output: str
    input: InputOptions
    address: str | None = None
    num_actors: int | None = None
    unit_pairs: int = DEFAULT_UNIT_PAIRS
    order: WantedOrder = "auto"
    with_rankings: bool = False
    with_trec_run: bool = False
    qrels: str | None = None
    measures: tuple[str, ...] = ()
    gpu_hour_price: float | None = None
    max_errors: MaxErrors = MaxErrors()
    pair_timeout_s: float = 300.0
    retry_errors: tuple[str, ...] = ()
    add_new: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_actors", "unit_pairs", "gpu_hour_price", "pair_timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} must be above zero, got {value}")


@dataclass(frozen=True, slots=True)
class Summary:
    """What the job did; `seconds` and rates are those of all its runs together."""

    output: str
    manifest: Manifest
    was_finished: bool = False
    trec_run: str | None = None
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        assert self.manifest.counts is not None
        return self.manifest.counts


def rerank(options: JobOptions, config: RerankerConfig, engine: Engine | None = None) -> Summary:
    """Run the job, or go on with it. Raises UsageError before anything is started, or JobError."""
    with interruptible(options.command) as check_interruption, display() as shown:
        _check_pool(options, config)
        shown.show(Step("reading input and model"))
        measure = _measure(options)
        job = plan_job(options, config)
        logger.info(job.plan.choice)
        is_wanted = job.is_growing or job.wants_trec_run or options.qrels
        if not is_wanted and job.is_finished:
            return Summary(str(job.output.directory), job.begun, was_finished=True)
        with hold(job.output) as check_lease:
            resume(job, check_lease)
            was_finished = job.is_finished
            if not was_finished:
                with _started(job, engine, check_interruption, shown) as run:
                    run.score()
                    run.verify()
                check_interruption()  # ray.shutdown has set a handler of its own
                run.finish(options.gpu_hour_price)
            trec_run = _write_trec_run(job, shown)
            shown.show(Step("measuring"))
            measures = measure()
            job.begun.note_measures(measures)
            return Summary(str(job.output.directory), job.begun, was_finished, trec_run, measures)


def _check_pool(options: JobOptions, config: RerankerConfig) -> None:
    if options.num_actors is not None:
        from shardrank.jobs.cluster import check_pool

        check_pool(options.address, config.device, options.num_actors)


def _measure(options: JobOptions) -> Callable[[], dict[str, float]]:
    """What measures the output. Judgements are read before the job starts, so that a wrong path
    costs no scoring.
    """
    if options.qrels is None:
        return dict
    from shardrank.jobs.evaluate import measures  # ir-measures, only where something is measured
    from shardrank.jobs.evaluate.qrels import load_qrels

    for each in options.measures:
        measures.parse_measure(each)
    qrels, names = load_qrels(options.qrels), options.measures or measures.DEFAULT_MEASURES
    load = measures.load_run_from_scores
    return lambda: measures.evaluate_run(load(options.output), qrels, names)


@contextmanager
def hold(output: Output) -> Iterator[Check]:
    """The lease. Its check asks the storage, for the moments in which it counts: a run that was
    suspended may be the first to wake up, before what renews the lease does.
    """
    with leased(output.directory) as check_renewed:
        ours = _run_of(holder_of(output.directory))

        def check() -> None:
            check_renewed()
            if _run_of(holder_of(output.directory)) != ours:
                raise JobError(f"{output.directory}: another run has taken over this output")

        yield check


def _run_of(holder: Mapping[str, Any] | None) -> Any:
    return holder and holder.get("run")


@contextmanager
def _started(
    job: PlannedJob, engine: Engine | None, check_interruption: Check, shown: Display
) -> Iterator["Run"]:
    """Ray with a pool that fits it, while the manifest's clock runs."""
    from shardrank.jobs.cluster import connected
    from shardrank.jobs.run.execution import Run
    from shardrank.jobs.run.pipeline import Workers

    options, manifest, units = job.options, job.begun, job.plan.units
    remaining = find_remaining(job.plan, job.output, options.retry_errors)
    num_pairs = sum(unit.num_pairs for unit in units)
    budget = Budget(options.max_errors, num_pairs, remaining.errors)
    budget.check()
    at = options.address
    shown.show(Step(f"joining the Ray cluster at {at}" if at else "starting Ray"))
    with connected(at):
        check_interruption()  # ray.init has set a handler of its own
        pool = _pool(job)
        num_done = len(units) - len(remaining.units)
        logger.info(f"{counted(len(units), 'unit')}, {num_done:,} done; {pool}")
        manifest.begin(options.input, options.command, pool.num_actors, budget)
        workers = Workers(job.config, engine or own_engine(), pool, options.pair_timeout_s)
        with manifest.timed():
            yield Run(job.plan, remaining, workers, manifest, budget, shown, check_interruption)
            check_interruption()


def _pool(job: PlannedJob) -> "Pool":
    """Raises UsageError, of which a job that has just begun leaves nothing behind."""
    import ray

    from shardrank.jobs.run.pool import choose_pool, settled_dtype

    config, manifest = job.config, job.begun
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        pool = choose_pool(nodes, config.device, job.options.num_actors)
        manifest.settle_dtype(settled_dtype(config.dtype, pool))
    except UsageError:
        if not manifest.num_runs:
            manifest.guard()
            delete_file(job.output.directory.child(MANIFEST))
        raise
    return pool


def _write_trec_run(job: PlannedJob, shown: Display) -> str | None:
    if not job.wants_trec_run:
        return None
    shown.show(Step("writing run.trec"))
    place = write_trec_run(job.output, job.plan.units)
    job.begun.note_trec_run()
    return str(place)


if __name__ == "__main__":
    sys.argv.insert(1, "rerank")
    runpy.run_module("shardrank.cli", run_name="__main__")  # by its name: it stands above the job
