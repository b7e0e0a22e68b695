"""The units on Ray: scored, collected, written as they complete, verified at the end."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from actors.config import RerankerConfig
from jobs.errors import JobError
from jobs.outputs import Output, UnitCollector, write_unit
from jobs.pipeline import Pool, score_units
from jobs.preparing import Engine
from jobs.progress import Meter, display
from jobs.units import Plan, Unit
from jobs.verify import Counts, verify_units

logger = logging.getLogger(__name__)

_MAX_WRITES_IN_FLIGHT = 64
_VERIFY_UNITS = 16


def score_remaining(
    plan: Plan,
    remaining: Sequence[Unit],
    output: Output,
    config: RerankerConfig,
    engine: Engine,
    pool: Pool,
    tick: Callable[[], None],
) -> None:
    """Score the units and write each as soon as it is complete; `tick` is called in between."""
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
            tick()
        writer.wait(0)
    logger.info(meter.line())


class _Writer:
    """Writes units on CPU tasks, a bounded number at a time."""

    def __init__(self, plan: Plan, output: Output) -> None:
        self._task = ray.remote(num_cpus=0, max_retries=5)(write_unit)
        self._input = ray.put(plan.input)
        self._output = output
        self._pending: list[Any] = []

    def write(self, unit: Unit, rows: pa.Table) -> None:
        self._pending.append(self._task.remote(self._output, self._input, unit, rows))
        self.wait(_MAX_WRITES_IN_FLIGHT)

    def wait(self, num_left: int) -> None:
        """Until at most num_left writes are under way. Raises what a write raised."""
        excess = len(self._pending) - num_left
        if self._pending:
            finished, self._pending = ray.wait(
                self._pending, num_returns=max(1, excess), timeout=None if excess > 0 else 0
            )
            ray.get(finished)


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
        if isinstance(seen, JobError):
            return seen
        sentence = next((line for line in reversed(str(seen).splitlines()) if line), sentence)
        seen = getattr(seen, "cause", None) or seen.__cause__
    return JobError(f"a worker failed: {sentence.strip()}")
