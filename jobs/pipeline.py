"""Ray Data's part: units to prepared chunks on CPU tasks, chunks to scores on a pool of actors."""

import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from actors.config import RerankerConfig
from jobs.documents import DocumentUnit
from jobs.engine import Engine
from jobs.inputs import JobInput
from jobs.ipc import from_ipc
from jobs.preparing import prepare_unit
from jobs.scores import with_lookups, with_scores
from jobs.units import Unit

BLOCK_BYTES = 1 << 20
"""Below a chunk's size: a larger block would hold chunks back until it is full."""
NO_PROGRESS_TIMEOUT_S = 1_800


@dataclass(frozen=True, slots=True)
class Pool:
    """The scoring actors; `num_cpus` and `num_gpus` are of one actor."""

    num_actors: int
    num_cpus: float
    num_gpus: float


class Score:
    """One actor: a scorer on its device. A chunk in, its score rows out."""

    def __init__(self, engine: Engine, config: RerankerConfig, pool: Pool) -> None:
        if config.num_threads is None and not pool.num_gpus:
            config = replace(config, num_threads=_fair_threads(pool))
        self._scorer = engine.scorer(config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables([self._score(batch, i) for i in range(batch.num_rows)])

    def _score(self, batch: pa.Table, index: int) -> pa.Table:
        rows = from_ipc(batch["rows"][index].as_buffer())
        prepared = pickle.loads(batch["prepared"][index].as_buffer())
        before = self._lookups()
        scores = [score for each in self._scorer.score(prepared) for score in each]
        scored = with_scores(rows, scores)
        scored = with_lookups(scored, _since(before, self._lookups()))
        for name in ("unit", "chunk", "is_last"):
            value = batch[name][index]
            column = pa.array([value.as_py()] * scored.num_rows, value.type)
            scored = scored.append_column(name, column)
        return scored

    def _lookups(self) -> list[int | None]:
        """The vision cache's hits and misses so far; of a scorer without one, nothing."""
        cache = getattr(self._scorer, "vision_cache", None)
        return [getattr(cache, "num_hits", None), getattr(cache, "num_misses", None)]


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
    engine: Engine,
    config: RerankerConfig,
    pool: Pool,
) -> Iterator[pa.Table]:
    """Tables of score rows as they come, in no order; a table may hold several chunks."""
    _configure()
    items = [{"unit": pickle.dumps(unit, 5)} for unit in units]
    prepared = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        prepare_unit,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"job_input": job_input, "engine": engine, "config": config},
        num_cpus=1,
    )
    with warnings.catch_warnings():
        # Bounded restarts have no other place in Ray 2.60 than the arguments that it deprecates.
        warnings.filterwarnings("ignore", "`ray_remote_args`")
        scored = prepared.map_batches(
            Score,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_kwargs={"engine": engine, "config": config, "pool": pool},
            compute=ActorPoolStrategy(size=pool.num_actors),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            max_restarts=3,
            max_task_retries=2,
        )
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")


def _configure() -> None:
    """Bounded failures, blocks that stream, and no display but ours."""
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    context.max_errored_blocks = 0
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace = False
