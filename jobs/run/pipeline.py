"""Ray Data's part: units to prepared chunks on CPU tasks, chunks to scores on a pool of actors."""

import logging
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import PairScore
from shardrank.actors.errors import Crashed, TimedOut, Unexpected
from shardrank.jobs.errors import JobError
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.inputs.parquet import from_ipc
from shardrank.jobs.outputs.scores import with_figures, with_scores
from shardrank.jobs.run.attempts import MAX_DEATHS, Attempt, AttemptLog, Attempts
from shardrank.jobs.run.engine import (
    Engine,
    PackedEngine,
    PreparedPairs,
    ScorerLike,
    check_outline,
    outline_of,
)
from shardrank.jobs.run.preparing import prepare_unit
from shardrank.jobs.units.documents import DocumentUnit
from shardrank.jobs.units.plan import Unit

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
"""Below a chunk's size: a larger block would hold chunks back until it is full."""
NO_PROGRESS_TIMEOUT_S = 1_800
CPU_NO_PROGRESS_TIMEOUT_S = 86_400
"""A chunk of 512 pairs is half an hour's work for a few cores and a large model, or more."""
FIRST_TIMEOUT_FACTOR = 10
"""An actor's first forward may take so many times longer: torch.compile is at work in it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The scoring actors; `num_cpus` and `num_gpus` are of one actor."""

    num_actors: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class Workers:
    """What scores, and on what."""

    config: RerankerConfig
    engine: Engine
    pool: Pool
    pair_timeout_s: float = 300.0


class Score:
    """One actor: a scorer on its device. A chunk in, its score rows out."""

    def __init__(
        self,
        engine: PackedEngine,
        config: RerankerConfig,
        pool: Pool,
        log: Attempts | None = None,
        timeout_s: float | None = None,
        outline: str | None = None,
    ) -> None:
        self._log = log or AttemptLog()
        # A CPU is slow, and does not hang.
        self._timeout_s = timeout_s if pool.num_gpus else None
        self._first_timeout_s = self._timeout_s and FIRST_TIMEOUT_FACTOR * self._timeout_s
        if config.num_threads is None and not pool.num_gpus:
            config = replace(config, num_threads=_fair_threads(pool))
        start = Attempt(self._log, ("start", _actor_id()))
        if start.num_deaths >= MAX_DEATHS:
            raise JobError(
                f"a scoring actor died {start.num_deaths} times while it loaded {config.model}: "
                "too little memory, or a library that crashes; Ray's worker logs say more"
            )
        check_outline(config, outline)
        self._scorer = engine.unpacked().scorer(config)
        start.end()

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables([self._score(batch, i) for i in range(batch.num_rows)])

    def _score(self, batch: pa.Table, index: int) -> pa.Table:
        work = "score", batch["unit"][index].as_py(), batch["chunk"][index].as_py()
        attempt = Attempt(self._log, work, self._timeout_s, self._first_timeout_s)
        started = time.monotonic()
        rows = from_ipc(batch["rows"][index].as_buffer())
        before = self._lookups()
        failure = attempt.hopeless()
        if failure is not None:  # of unpacking it, say: then nothing of it can be scored
            scores = [PairScore(error=failure)] * rows["error_code"].null_count
        else:
            prepared = pickle.loads(batch["prepared"][index].as_buffer())
            scores = score_pairs(self._scorer, prepared, attempt)
        scored = with_scores(rows, scores)
        seconds = batch["seconds"][index].as_py() + time.monotonic() - started
        scored = with_figures(scored, [*_since(before, self._lookups()), seconds])
        for name in ("unit", "chunk", "is_last"):
            value = batch[name][index]
            column = pa.array([value.as_py()] * scored.num_rows, value.type)
            scored = scored.append_column(name, column)
        attempt.end()
        self._first_timeout_s = None
        return scored

    def _lookups(self) -> list[int | None]:
        """The vision cache's hits and misses so far; of a scorer without one, nothing."""
        cache = getattr(self._scorer, "vision_cache", None)
        return [getattr(cache, "num_hits", None), getattr(cache, "num_misses", None)]


def score_pairs(
    scorer: ScorerLike, prepared: Sequence[PreparedPairs], attempt: Attempt
) -> list[PairScore]:
    """All pairs' scores, in order. Together, unless that raised, or killed its process twice: then
    pair by pair, so that what is to blame is one row's error.

    If none is, its process was killed by something else. So they are scored together once more:
    alone a pair's last bits may differ, and the rows are to be those of an undisturbed run.
    """
    is_suspect = attempt.num_deaths >= MAX_DEATHS
    if not is_suspect and (scores := _score_together(scorer, prepared, attempt)) is not None:
        return scores
    pairs = [each.only(index) for each in prepared for index in range(each.num_pairs)]
    alone = [_score_one(scorer, pair, attempt, number) for number, pair in enumerate(pairs)]
    is_innocent = not any(
        isinstance(score.error, Crashed | TimedOut | Unexpected) for score in alone
    )
    if is_suspect and is_innocent and attempt.failure("together") is None:
        return _score_together(scorer, prepared, attempt) or alone
    return alone


def _score_together(
    scorer: ScorerLike, prepared: Sequence[PreparedPairs], attempt: Attempt
) -> list[PairScore] | None:
    """None where it raised."""
    try:
        with attempt.step("together"):
            scores = scorer.score(list(prepared), attempt.progress)
        return [score for each in scores for score in each]
    except Exception as error:
        _die_with_device(error)
        logger.warning("scoring pair by pair what failed together: %r", error)
        return None


def _score_one(scorer: ScorerLike, pair: PreparedPairs, attempt: Attempt, number: int) -> PairScore:
    failure = attempt.failure("pair", number)
    if failure is not None:
        return PairScore(error=failure)
    try:
        with attempt.step("pair", number):
            ((score,),) = scorer.score([pair], attempt.progress)
            return score
    except Exception as error:
        _die_with_device(error)
        return PairScore(error=Unexpected.of(error, "scoring"))


def _die_with_device(error: Exception) -> None:
    """After an error of the device itself nothing works in this process: a new one is needed, and
    learns from the log that this one died.
    """
    torch = sys.modules.get("torch")
    lost = getattr(torch, "AcceleratorError", None)
    if lost is not None and isinstance(error, lost):
        logger.error("the device failed: %r", error)
        os._exit(1)


def _actor_id() -> str:
    """The same after a restart."""
    return ray.get_runtime_context().get_actor_id() or "" if ray.is_initialized() else ""


def _since(before: list[int | None], now: list[int | None]) -> list[int | None]:
    return [
        None if then is None or later is None else later - then
        for then, later in zip(before, now, strict=True)
    ]


def _fair_threads(pool: Pool) -> int:
    """This node's cores over the actors, as if all were here; Ray itself would leave one."""
    return max(1, (os.cpu_count() or 1) // pool.num_actors)


def score_units(
    units: Sequence[Unit | DocumentUnit],
    job_input: JobInput,
    workers: Workers,
    log: Attempts,
) -> Iterator[pa.Table]:
    """Tables of score rows as they come, in no order; a table may hold several chunks.

    However often a process dies, its work is begun again; the log is what ends that.
    """
    engine, config, pool = packed(workers.engine), workers.config, workers.pool
    outline = outline_of(config)
    _configure(pool)
    items = [{"unit": pickle.dumps(unit, 5)} for unit in units]
    prepared = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        prepare_unit,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={
            "job_input": job_input,
            "engine": engine,
            "config": config,
            "log": log,
            "timeout_s": workers.pair_timeout_s,
            "outline": outline,
        },
        num_cpus=1,
    )
    with warnings.catch_warnings():
        # Ray's own defaults, but said: without arguments of its own the stage would be fused with
        # the one before it, and prepare on its device's time. They have no other place in Ray 2.60.
        warnings.filterwarnings("ignore", "`ray_remote_args`")
        scored = prepared.map_batches(
            Score,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_kwargs={
                "engine": engine,
                "config": config,
                "pool": pool,
                "log": log,
                "timeout_s": workers.pair_timeout_s,
                "outline": outline,
            },
            compute=ActorPoolStrategy(size=pool.num_actors),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            max_restarts=-1,
            max_task_retries=-1,
        )
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")


def packed(engine: Engine) -> PackedEngine:
    return PackedEngine(cloudpickle.dumps(engine))


def _configure(pool: Pool) -> None:
    """Bounded failures, blocks that stream, and no display but ours."""
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = (
        NO_PROGRESS_TIMEOUT_S if pool.num_gpus else CPU_NO_PROGRESS_TIMEOUT_S
    )
    context.max_errored_blocks = 0
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace = False
