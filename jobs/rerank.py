"""The job from end to end: plan, skip what is done, score, write, verify.

`python -m jobs.rerank` is the command `shardrank rerank`.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.checkpoint import checkpoint_fingerprint, resolve_checkpoint
from actors.config import RerankerConfig
from jobs.budget import Budget, MaxErrors
from jobs.engine import Engine
from jobs.errors import UnreadableInput, UsageError
from jobs.inputs import InputOptions, open_job_input
from jobs.lease import leased
from jobs.manifest import (
    Manifest,
    add_lookups,
    check_same_dtype,
    check_same_job,
    job_fingerprint,
    kept_command,
    kept_input,
    new_manifest,
    read_manifest,
    save_manifest,
)
from jobs.order import WantedOrder
from jobs.outputs import SCORES, SUCCESS, Output, write_trec_run
from jobs.scores import lookups_of
from jobs.status import UnitFile, unit_files
from jobs.storage import Location, write_atomically
from jobs.units import DEFAULT_UNIT_PAIRS, Plan, plan_units
from jobs.verify import check_strays

logger = logging.getLogger(__name__)

_SAVE_EVERY_S = 30.0
ALL_ERRORS = "all"


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
    qrels = _load_qrels(options)
    output = Output(Location.parse(options.output), options.with_rankings)
    manifest = read_manifest(output)
    plan, job = _plan(options, config)
    if manifest is not None:
        check_same_job(output, manifest, job)
    failed = _failed_units(output, options.retry_errors)
    was_finished = not failed and manifest is not None and output.directory.child(SUCCESS).exists()
    if manifest is None:
        manifest = new_manifest(job, config)
    logger.info(plan.choice)
    if not was_finished:
        config = _for_workers(config, job["model"])
        with leased(output.directory) as check_lease:
            begun = read_manifest(output)
            if begun is not None:  # perhaps by another run, while this one planned or waited
                check_same_job(output, begun, job)
                manifest = begun
            if failed:
                _forget(output, manifest, failed)
            _run(options, config, engine or _own_engine(), plan, output, manifest, check_lease)
            _finish(output, manifest)
    trec_run = str(write_trec_run(output, plan.units)) if options.with_trec_run else None
    measures = _evaluate(options, qrels)
    if measures:
        save_manifest(output, manifest | {"measures": measures})
    return Summary(str(output.directory), manifest, was_finished, trec_run, measures)


def _failed_units(output: Output, codes: Sequence[str]) -> list[UnitFile]:
    """The finished units with a row that failed of one of the codes."""
    files = unit_files(output.directory.child(SCORES)) if codes else []
    return [
        file
        for file in files
        if file.errors and (ALL_ERRORS in codes or not file.errors.keys().isdisjoint(codes))
    ]


def _forget(output: Output, manifest: Manifest, failed: Sequence[UnitFile]) -> None:
    """The job is no longer finished, and these units are to be scored again."""
    logger.info(f"scoring {len(failed)} units again for their errors")
    manifest["status"] = "running"
    errors: Counter[str] = Counter(manifest.get("errors", {}))
    for file in failed:
        errors.subtract(file.errors)
    manifest["errors"] = {code: num for code, num in errors.most_common() if num > 0}
    save_manifest(output, manifest)
    for place in (
        output.directory.child(SUCCESS),
        *(output.directory.child(SCORES).child(f"{file.name}.parquet") for file in failed),
    ):
        if place.exists():
            place.filesystem.delete_file(place.path)


def _plan(options: JobOptions, config: RerankerConfig) -> tuple[Plan, Manifest]:
    """The job's units and its fingerprint; an input that cannot be planned is a wrong command."""
    model = _model(config)
    try:
        opened = open_job_input(options.input)
        plan = plan_units(opened, options.unit_pairs, options.order)
    except UnreadableInput as error:
        raise UsageError(str(error)) from error
    return plan, job_fingerprint(
        opened, plan, config, model, options.unit_pairs, options.with_rankings
    )


def _own_engine() -> Engine:
    from actors.preprocessor import Preprocessor  # torch and transformers: seconds to import
    from actors.scorer import Scorer

    return Engine(Preprocessor, Scorer)


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
    from jobs.cluster import is_submitted

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
    from jobs.evaluate import parse_measure  # ir-measures, only where something is measured
    from jobs.qrels import load_qrels

    for measure in options.measures:
        parse_measure(measure)
    return load_qrels(options.qrels)


def _evaluate(options: JobOptions, qrels: Any) -> dict[str, float]:
    if qrels is None:
        return {}
    from jobs.evaluate import DEFAULT_MEASURES, evaluate_run, load_run_from_scores

    run = load_run_from_scores(options.output)
    return evaluate_run(run, qrels, options.measures or DEFAULT_MEASURES)


def _run(
    options: JobOptions,
    config: RerankerConfig,
    engine: Engine,
    plan: Plan,
    output: Output,
    manifest: Manifest,
    check_lease: Callable[[], None],
) -> None:
    """Score what remains and verify everything; the manifest says how far it came."""
    import ray  # seconds to import, and a refusal needs none of it

    from jobs.cluster import choose_pool, connected, settled_dtype
    from jobs.execution import score_remaining, verify_all
    from jobs.interruption import interruptible
    from jobs.pipeline import Workers

    with connected(options.address), interruptible() as check_interruption:
        pool = choose_pool(ray.cluster_resources(), config.device, options.num_actors)
        check_same_dtype(output, manifest, settled_dtype(config.dtype, pool))
        remaining = output.remaining(plan.units)
        num_done = len(plan.units) - len(remaining)
        actors = f"{pool.num_actors} scoring {'actor' if pool.num_actors == 1 else 'actors'}"
        kind = "GPU" if pool.num_gpus else "CPU"
        logger.info(f"{len(plan.units)} units, {num_done} done; {actors} on {kind}")
        output.remove_leftovers()
        manifest["num_runs"] += 1
        manifest["input"] = kept_input(options.input)
        if options.command:
            manifest["command"] = kept_command(options.command)
        manifest["num_actors"] = pool.num_actors
        budget = Budget(
            options.max_errors,
            sum(unit.num_pairs for unit in plan.units),
            Counter(manifest.get("errors", {})),
        )
        budget.check()
        with _timed(output, manifest) as clock:
            workers = Workers(config, engine, pool, options.pair_timeout_s)
            record = _Record(manifest, budget, clock, (check_interruption, check_lease))
            score_remaining(plan, remaining, output, workers, record)
            counts = verify_all(plan, output)
            check_strays(output, plan)
            check_interruption()
            # Before _SUCCESS: where only some are gone, all score files are there and suffice.
            output.remove_parts()
        manifest.update(asdict(counts))
        _add_rates(manifest, options, pool.num_actors if pool.num_gpus else 0)


class _Clock:
    """Adds this run's seconds to the manifest, now and then also in its file."""

    def __init__(self, output: Output, manifest: Manifest) -> None:
        self._output = output
        self._manifest = manifest
        self._before = manifest["seconds"]
        self._started = self._saved = time.monotonic()

    def save(self) -> None:
        self._saved = time.monotonic()
        self._manifest["seconds"] = round(self._before + self._saved - self._started, 3)
        save_manifest(self._output, self._manifest)

    def tick(self) -> None:
        if time.monotonic() - self._saved >= _SAVE_EVERY_S:
            self.save()


class _Record:
    """What happens in a run, as far as the manifest has it; execution.py's Watcher."""

    def __init__(
        self,
        manifest: Manifest,
        budget: Budget,
        clock: _Clock,
        checks: tuple[Callable[[], None], ...],
    ) -> None:
        self._manifest = manifest
        self._budget = budget
        self._clock = clock
        self._checks = checks
        self._errors = Counter(budget.errors)

    def tick(self) -> None:
        for check in self._checks:
            check()
        self._clock.tick()

    def scored(self, rows: Any) -> None:
        lookups = lookups_of(rows)
        if lookups is not None:
            add_lookups(self._manifest, *lookups)

    def written(self, rows: Any) -> None:
        codes = Counter(code for code in rows["error_code"].to_pylist() if code is not None)
        self._errors.update(codes)
        self._manifest["errors"] = dict(self._errors.most_common())
        self._budget.add(codes)

    def failed(self, num_pairs: int) -> None:
        """Of this run alone: the next one tries again."""
        self._budget.add(Counter({"unreadable_input": num_pairs}))


@contextmanager
def _timed(output: Output, manifest: Manifest) -> Iterator[_Clock]:
    clock = _Clock(output, manifest)
    clock.save()
    try:
        yield clock
    except BaseException:
        with suppress(OSError):  # what went wrong first is what counts
            clock.save()
        raise
    clock.save()


def _add_rates(manifest: Manifest, options: JobOptions, num_gpus: int) -> None:
    seconds = max(manifest["seconds"], 1e-9)
    manifest["pairs_per_s"] = round(manifest["num_pairs"] / seconds, 3)
    manifest["tokens_per_s"] = round(manifest["num_tokens"] / seconds, 1)
    if options.gpu_hour_price is not None:
        manifest["gpu_hour_price"] = options.gpu_hour_price
        manifest["cost"] = round(seconds / 3600 * num_gpus * options.gpu_hour_price, 6)


def _finish(output: Output, manifest: Manifest) -> None:
    manifest["status"] = "finished"
    save_manifest(output, manifest)
    write_atomically(output.directory.child(SUCCESS), b"")


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["rerank", *sys.argv[1:]]))
