"""The job from end to end: plan, skip what is done, score, write, verify.

`python -m jobs.rerank` is the command `shardrank rerank`.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.checkpoint import checkpoint_fingerprint, resolve_checkpoint
from actors.config import RerankerConfig
from jobs.errors import JobError, UnreadableInput, UsageError
from jobs.inputs import InputOptions, open_job_input
from jobs.manifest import (
    Manifest,
    check_same_job,
    job_fingerprint,
    new_manifest,
    read_manifest,
    save_manifest,
)
from jobs.outputs import SUCCESS, Output, UnitCollector, write_trec_run
from jobs.preparing import Engine
from jobs.progress import Meter, display
from jobs.storage import Location, write_atomically
from jobs.units import DEFAULT_UNIT_PAIRS, Plan, Unit, plan_units
from jobs.verify import Counts

logger = logging.getLogger(__name__)

_MAX_WRITES_IN_FLIGHT = 64
_SAVE_EVERY_S = 30.0
_VERIFY_UNITS = 16


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the command says beside the reranker's own config."""

    output: str
    input: InputOptions
    address: str | None = None
    num_actors: int | None = None
    unit_pairs: int = DEFAULT_UNIT_PAIRS
    with_rankings: bool = False
    with_trec_run: bool = False
    qrels: str | None = None
    measures: tuple[str, ...] = ()
    gpu_hour_price: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_actors", "unit_pairs", "gpu_hour_price"):
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
    is_finished = output.directory.child(SUCCESS).exists()
    if manifest is None or not is_finished:
        manifest = manifest or new_manifest(job, config)
        _run(options, config, engine or _own_engine(), plan, output, manifest)
    trec_run = write_trec_run(output, plan.units) if options.with_trec_run else None
    measures = _evaluate(options, qrels)
    if not is_finished:
        _finish(output, manifest, measures)
    return Summary(
        str(output.directory),
        manifest,
        is_finished,
        str(trec_run) if trec_run else None,
        measures,
    )


def _plan(options: JobOptions, config: RerankerConfig) -> tuple[Plan, Manifest]:
    """The job's units and its fingerprint; an input that cannot be planned is a wrong command."""
    model = _model(config)
    try:
        opened = open_job_input(options.input)
        plan = plan_units(opened, options.unit_pairs)
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
) -> None:
    """Score what remains and verify everything; the manifest says how far it came."""
    import ray

    from jobs.cluster import choose_pool, connected

    with connected(options.address):
        pool = choose_pool(ray.cluster_resources(), config.device, options.num_actors)
        remaining = output.remaining(plan.units)
        logger.info(
            "%d units, %d done; %d scoring %s on %s",
            len(plan.units),
            len(plan.units) - len(remaining),
            pool.num_actors,
            "actor" if pool.num_actors == 1 else "actors",
            "GPU" if pool.num_gpus else "CPU",
        )
        output.remove_leftovers()
        manifest["num_runs"] += 1
        manifest["num_actors"] = pool.num_actors
        with _timed(output, manifest) as clock:
            _score(plan, remaining, output, config, engine, pool, clock)
            counts = _verify(plan, output)
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


@contextmanager
def _timed(output: Output, manifest: Manifest) -> Iterator[_Clock]:
    clock = _Clock(output, manifest)
    try:
        clock.save()
    except OSError as error:
        raise UsageError(f"--output {output.directory} cannot be written: {error}") from error
    try:
        yield clock
    finally:
        clock.save()


def _score(
    plan: Plan,
    remaining: Sequence[Unit],
    output: Output,
    config: RerankerConfig,
    engine: Engine,
    pool: Any,
    clock: _Clock,
) -> None:
    from jobs.pipeline import score_units

    if not remaining:
        return
    units = {unit.index: unit for unit in remaining}
    meter = Meter(
        sum(unit.num_pairs for unit in remaining), sum(unit.num_queries for unit in remaining)
    )
    collector, writer = UnitCollector(), _Writer(plan, output)
    with _ray_errors(), display(meter) as shown:
        for scored in score_units(remaining, plan.input, engine, config, pool):
            meter.add(scored)
            for index, rows in collector.add(scored):
                writer.write(units[index], rows)
                meter.num_queries += units[index].num_queries
            shown.update()
            clock.tick()
        writer.wait(0)
    logger.info(meter.line())


class _Writer:
    """Writes units on CPU tasks, a bounded number at a time."""

    def __init__(self, plan: Plan, output: Output) -> None:
        import ray

        from jobs.outputs import write_unit

        self._ray = ray
        self._task = ray.remote(num_cpus=0, max_retries=5)(write_unit)
        self._input = ray.put(plan.input)
        self._output = output
        self._pending: list[Any] = []

    def write(self, unit: Unit, rows: pa.Table) -> None:
        self._pending.append(self._task.remote(self._output, self._input, unit, rows))
        self.wait(_MAX_WRITES_IN_FLIGHT)

    def wait(self, num_left: int) -> None:
        """Until at most num_left writes are under way. Raises what a write raised."""
        num_finished = max(1, len(self._pending) - num_left)
        if self._pending:
            finished, self._pending = self._ray.wait(
                self._pending, num_returns=num_finished, timeout=0 if num_left else None
            )
            self._ray.get(finished)


def _verify(plan: Plan, output: Output) -> Counts:
    import ray

    from jobs.verify import verify_units

    task = ray.remote(num_cpus=1)(verify_units)
    job_input = ray.put(plan.input)
    parts = [plan.units[i : i + _VERIFY_UNITS] for i in range(0, len(plan.units), _VERIFY_UNITS)]
    with _ray_errors():
        return Counts.total(ray.get([task.remote(job_input, output, part) for part in parts]))


@contextmanager
def _ray_errors() -> Iterator[None]:
    """What went wrong inside a worker, without Ray's wrapping."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise _own_error(error) from error


def _own_error(error: BaseException) -> JobError:
    """Our own error inside Ray's, or the last line that any of them says."""
    sentence = type(error).__name__
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, JobError):
            return seen
        sentence = next((line for line in reversed(str(seen).splitlines()) if line), sentence)
        seen = getattr(seen, "cause", None) or seen.__cause__
    return JobError(f"a worker failed: {sentence.strip()}")


def _add_rates(manifest: Manifest, options: JobOptions, num_gpus: int) -> None:
    seconds = max(manifest["seconds"], 1e-9)
    manifest["pairs_per_s"] = round(manifest["num_pairs"] / seconds, 3)
    manifest["tokens_per_s"] = round(manifest["num_tokens"] / seconds, 1)
    if options.gpu_hour_price is not None:
        manifest["gpu_hour_price"] = options.gpu_hour_price
        manifest["cost"] = round(seconds / 3600 * num_gpus * options.gpu_hour_price, 6)


def _finish(output: Output, manifest: Manifest, measures: dict[str, float]) -> None:
    manifest["status"] = "finished"
    manifest["measures"] = measures
    save_manifest(output, manifest)
    write_atomically(output.directory.child(SUCCESS), b"")


if __name__ == "__main__":
    from jobs.cli import main

    sys.exit(main(["rerank", *sys.argv[1:]]))
