"""The job from end to end: plan, skip what is done, score, write, verify.

`python -m shardrank.jobs.rerank` is the command `shardrank rerank`.
"""

import logging
import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardrank.actors.config import RerankerConfig
from shardrank.actors.model.checkpoint import checkpoint_fingerprint, resolve_checkpoint
from shardrank.jobs.errors import JobError, UnreadableInput, UsageError
from shardrank.jobs.inputs.forms import InputOptions, OpenedInput, open_job_input
from shardrank.jobs.interruption import interruptible
from shardrank.jobs.outputs.budget import Budget, MaxErrors
from shardrank.jobs.outputs.files import (
    MANIFEST,
    SCORES,
    SUCCESS,
    Output,
    check_trec_ids,
    write_trec_run,
)
from shardrank.jobs.outputs.growth import (
    begin_growth,
    find_held,
    had_trec_run,
    lacks_trec_run,
    note_trec_run,
)
from shardrank.jobs.outputs.input_files import has_new_input, known_paths
from shardrank.jobs.outputs.lease import holder_of, leased
from shardrank.jobs.outputs.manifest import (
    Manifest,
    check_same_dtype,
    check_same_job,
    job_fingerprint,
    kept_command,
    kept_input,
    new_manifest,
    read_held,
    read_manifest,
    save_manifest,
)
from shardrank.jobs.outputs.record import Check, Record, timed
from shardrank.jobs.outputs.status import find_remaining, has_failed, is_marked_finished, unit_files
from shardrank.jobs.outputs.verify import check_strays
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.storage import Location, delete_file, write_atomically
from shardrank.jobs.units.growth import Held
from shardrank.jobs.units.order import WantedOrder
from shardrank.jobs.units.plan import DEFAULT_UNIT_PAIRS, Plan, plan_units

if TYPE_CHECKING:  # Ray takes seconds to import, and a refusal needs none of it
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


def rerank(options: JobOptions, config: RerankerConfig, engine: Engine | None = None) -> Summary:
    """Run the job, or go on with it. Raises UsageError before anything is started, or JobError."""
    with interruptible(options.command) as check_interruption:
        qrels = _load_qrels(options)
        output = Output(Location.parse(options.output), options.with_rankings)
        manifest = read_manifest(output)
        opened = _open_input(options, manifest)
        held = read_held(output, manifest)
        plan, job = _plan(options, config, opened, manifest, held)
        is_growing = options.add_new and manifest is not None and has_new_input(manifest, job)
        if manifest is not None and not is_growing:
            check_same_job(output, manifest, job)
        logger.info(plan.choice)
        had_run = lacks_trec_run(manifest) or (is_growing and had_trec_run(output))
        with_trec_run = options.with_trec_run or had_run
        if with_trec_run:
            check_trec_ids(plan)
        is_wanted = with_trec_run or qrels or is_growing
        if not is_wanted and _is_finished(options, plan, output, manifest):
            assert manifest is not None
            return Summary(str(output.directory), manifest, was_finished=True)
        config = _for_workers(config, job["model"])
        with _held(output) as check_lease:
            if is_growing:
                assert manifest is not None
                manifest = _still(output, manifest)
                held = find_held(output, manifest, opened)
                plan, job = _plan(options, config, opened, manifest, held)
                check_lease()
                begin_growth(output, manifest, job, opened, held)
            manifest = _begun(output, job, config)
            was_finished = _is_finished(options, plan, output, manifest)
            if not was_finished:
                checks = check_interruption, check_lease
                _run(options, config, engine or _own_engine(), plan, output, manifest, checks)
                check_lease()
                _finish(output, manifest)
            trec_run = None
            if with_trec_run:
                trec_run = str(write_trec_run(output, plan.units))
                check_lease()
                note_trec_run(output, manifest)
            measures = _evaluate(options, qrels)
            if measures:
                check_lease()
                save_manifest(output, manifest | {"measures": measures})
            return Summary(str(output.directory), manifest, was_finished, trec_run, measures)


def _still(output: Output, planned: Manifest) -> Manifest:
    """The directory's manifest. Raises JobError where another run changed the job since this one
    planned with it: what it added would be written over.
    """
    manifest = read_manifest(output)
    if manifest is None or any(manifest.get(n) != planned.get(n) for n in ("job", "growth")):
        raise JobError(f"{output.directory}: another run changed it meanwhile; run this again")
    return manifest


def _is_finished(
    options: JobOptions, plan: Plan, output: Output, manifest: Manifest | None
) -> bool:
    """Whether there is nothing to score, nor to score again."""
    if manifest is None or not is_marked_finished(output, manifest) or output.remaining(plan.units):
        return False
    files = unit_files(output.directory.child(SCORES)) if options.retry_errors else []
    return not any(has_failed(file, options.retry_errors) for file in files)


@contextmanager
def _held(output: Output) -> Iterator[Check]:
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


def _begun(output: Output, job: Manifest, config: RerankerConfig) -> Manifest:
    """The directory's manifest, perhaps of a run that began while this one planned or waited; else
    a new one, saved at once: whoever comes next sees which job this is.
    """
    manifest = read_manifest(output)
    if manifest is not None:
        check_same_job(output, manifest, job)
        return manifest
    manifest = new_manifest(job, config)
    save_manifest(output, manifest)
    return manifest


def _open_input(options: JobOptions, manifest: Manifest | None) -> OpenedInput:
    """The input, its files in the order in which the job knows them."""
    try:
        opened = open_job_input(options.input)
    except UnreadableInput as error:
        raise UsageError(str(error)) from error
    return opened.ordered_as(known_paths(manifest)) if manifest else opened


def _plan(
    options: JobOptions,
    config: RerankerConfig,
    opened: OpenedInput,
    manifest: Manifest | None,
    held: Held | None,
) -> tuple[Plan, Manifest]:
    """The job's units and its fingerprint; an input that cannot be planned is a wrong command."""
    known = manifest["job"] if manifest else {}
    goes_on = options.order == "auto" and (options.add_new or held is not None)
    order = known.get("order", "auto") if goes_on else options.order
    try:
        plan = plan_units(opened, options.unit_pairs, order, held=held)
        return plan, job_fingerprint(
            opened,
            plan,
            config,
            _model(config),
            options.unit_pairs,
            options.with_rankings,
            known.get("input"),
        )
    except UnreadableInput as error:
        raise UsageError(str(error)) from error


def _own_engine() -> Engine:
    from shardrank.actors.preprocessor import (
        Preprocessor,  # torch and transformers: seconds to import
    )
    from shardrank.actors.scorer import Scorer

    return Engine(Preprocessor, Scorer.warm)


def _model(config: RerankerConfig) -> dict[str, str]:
    """Of a hub model only the settings are fetched here: its weights are for the workers."""
    try:
        checkpoint = resolve_checkpoint(config.model, config.revision, weights=False)
        config.resolve(checkpoint)
        if Path(config.model).is_dir() and not any(checkpoint.glob("*.safetensors")):
            raise ValueError(f"{checkpoint} has no *.safetensors")
        return checkpoint_fingerprint(checkpoint)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error


def _for_workers(config: RerankerConfig, model: Mapping[str, str]) -> RerankerConfig:
    """The checkpoint that the driver saw, by paths that hold wherever a worker starts.

    A submitted job's workers start in its own copy of the working directory, as the driver does.
    """
    from shardrank.jobs.cluster import is_submitted

    config = replace(config, revision=model.get("commit", config.revision))
    if is_submitted():
        return config
    roots = config.media_root
    roots = tuple(map(_absolute, roots)) if isinstance(roots, tuple) else _absolute(roots)
    return replace(config, model=_absolute(config.model), media_root=roots)


def _absolute(path: Any) -> Any:
    """A local directory's absolute path; a hub name, an object store's prefix or None as it is."""
    return str(Path(path).resolve()) if path and Path(path).is_dir() else path


def _load_qrels(options: JobOptions) -> Any:
    """Read before the job starts, so that a wrong path costs no scoring."""
    if options.qrels is None:
        return None
    from shardrank.jobs.evaluate.measures import (
        parse_measure,  # ir-measures, only where something is measured
    )
    from shardrank.jobs.evaluate.qrels import load_qrels

    for measure in options.measures:
        parse_measure(measure)
    return load_qrels(options.qrels)


def _evaluate(options: JobOptions, qrels: Any) -> dict[str, float]:
    if qrels is None:
        return {}
    from shardrank.jobs.evaluate.measures import (
        DEFAULT_MEASURES,
        evaluate_run,
        load_run_from_scores,
    )

    run = load_run_from_scores(options.output)
    return evaluate_run(run, qrels, options.measures or DEFAULT_MEASURES)


def _run(
    options: JobOptions,
    config: RerankerConfig,
    engine: Engine,
    plan: Plan,
    output: Output,
    manifest: Manifest,
    checks: tuple[Check, Check],
) -> None:
    """Score what remains and verify everything; the manifest says how far it came."""
    from shardrank.jobs.cluster import connected
    from shardrank.jobs.run.execution import score_remaining, verify_all
    from shardrank.jobs.run.pipeline import Workers

    check_interruption, check_lease = checks
    remaining = find_remaining(plan, output, options.retry_errors)
    num_pairs = sum(unit.num_pairs for unit in plan.units)
    budget = Budget(options.max_errors, num_pairs, remaining.errors)
    budget.check()
    with connected(options.address):
        check_interruption()  # ray.init has set a handler of its own
        pool = _pool(options, config, output, manifest, check_lease)
        num_done = len(plan.units) - len(remaining.units)
        logger.info(f"{len(plan.units)} units, {num_done} done; {_named(pool)}")
        check_lease()
        _begin(options, output, manifest, budget, pool)
        with timed(output, manifest, check_lease) as clock:
            workers = Workers(config, engine, pool, options.pair_timeout_s)
            record = Record(manifest, budget, clock, check_interruption)
            score_remaining(plan, remaining.units, output, workers, record, remaining.stale_parts)
            counts = verify_all(plan, output, record)
            check_strays(output, plan)
            check_interruption()
            check_lease()
            # Before _SUCCESS: where only some are gone, all score files are there and suffice.
            output.remove_parts()
            output.remove_leftovers()  # of writers that were killed in this run
    check_interruption()  # and so has ray.shutdown
    manifest.update(asdict(counts))
    _add_rates(manifest, options, pool.num_actors if pool.num_gpus else 0)


def _pool(
    options: JobOptions,
    config: RerankerConfig,
    output: Output,
    manifest: Manifest,
    check_lease: Check,
) -> "Pool":
    """Raises UsageError, of which a job that has just begun leaves nothing behind."""
    import ray

    from shardrank.jobs.run.pool import choose_pool, settled_dtype

    try:
        pool = choose_pool(ray.cluster_resources(), config.device, options.num_actors)
        check_same_dtype(output, manifest, settled_dtype(config.dtype, pool))
    except UsageError:
        if not manifest["num_runs"]:
            check_lease()
            delete_file(output.directory.child(MANIFEST))
        raise
    return pool


def _named(pool: "Pool") -> str:
    actors = f"{pool.num_actors} scoring {'actor' if pool.num_actors == 1 else 'actors'}"
    return f"{actors} on {'GPU' if pool.num_gpus else 'CPU'}"


def _begin(
    options: JobOptions, output: Output, manifest: Manifest, budget: Budget, pool: "Pool"
) -> None:
    """Nothing can refuse the command any more: the job is no longer finished, if it was."""
    delete_file(output.directory.child(SUCCESS))
    output.remove_leftovers()
    manifest["status"] = "running"
    manifest.pop("measures", None)  # of what it had scored
    manifest["num_runs"] += 1
    manifest["input"] = kept_input(options.input)
    if options.command:
        manifest["command"] = kept_command(options.command)
    manifest["num_actors"] = pool.num_actors
    manifest["errors"] = dict(budget.errors.most_common())


def _add_rates(manifest: Manifest, options: JobOptions, num_gpus: int) -> None:
    seconds = max(manifest["seconds"], 1e-9)
    manifest["pairs_per_s"] = round(manifest["num_pairs"] / seconds, 3)
    manifest["tokens_per_s"] = round(manifest["num_tokens"] / seconds, 1)
    if options.gpu_hour_price is not None:
        manifest["gpu_hour_price"] = options.gpu_hour_price
        manifest["cost"] = round(seconds / 3600 * num_gpus * options.gpu_hour_price, 6)


def _finish(output: Output, manifest: Manifest) -> None:
    manifest["status"] = "finished"
    if "growth" in manifest:
        manifest["growth"]["is_open"] = False
    save_manifest(output, manifest)
    write_atomically(output.directory.child(SUCCESS), b"")


if __name__ == "__main__":
    sys.argv.insert(1, "rerank")
    runpy.run_module("shardrank.cli", run_name="__main__")  # by its name: it stands above the job
