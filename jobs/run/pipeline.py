"""Ray Data's part: units to prepared chunks on CPU tasks, chunks to scores on a pool of actors."""

import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext

from shardrank.actors.config import RerankerConfig
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.run.attempts import Attempts
from shardrank.jobs.run.engine import (
    Engine,
    PackedEngine,
    outline_of,
)
from shardrank.jobs.run.pool import Pool
from shardrank.jobs.run.preparing import prepare_unit
from shardrank.jobs.run.scoring import Score
from shardrank.jobs.units.documents import DocumentUnit
from shardrank.jobs.units.plan import Unit

BLOCK_BYTES = 1 << 20
"""Below a chunk's size: a larger block would hold chunks back until it is full."""
NO_PROGRESS_TIMEOUT_S = 1_800
CPU_NO_PROGRESS_TIMEOUT_S = 86_400
"""A chunk of 512 pairs is half an hour's work for a few cores and a large model, or more."""


@dataclass(frozen=True, slots=True)
class Workers:
    """What scores, and on what."""

    config: RerankerConfig
    engine: Engine
    pool: Pool
    pair_timeout_s: float = 300.0


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
            compute=ActorPoolStrategy(
                size=pool.num_actors,
                # The next chunk is made ready while one is scored; a CPU has no time for both.
                max_concurrent_calls_per_actor=2 if pool.num_gpus else None,
                enable_true_multi_threading=bool(pool.num_gpus),
            ),
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
