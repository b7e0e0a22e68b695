"""How fast this machine multiplies matrices of a model's shapes; its own process, one JSON line.

What an implementation could reach at best: the same library, threads and dtype, nothing else to do.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.bench.flops import Flops, LinearShape

if TYPE_CHECKING:
    import torch

ROWS = (256, 1_024, 4_096)
_SECONDS_OF_A_PASS = 0.03
_NUM_PASSES = 4
"""Apart in time, so that a moment in which something else runs does not count."""


@dataclass(frozen=True, slots=True)
class MatmulRates:
    """FLOPs a second by (inputs, outputs) and then by rows."""

    rates: dict[LinearShape, dict[int, float]]

    def best(self, shape: LinearShape) -> float:
        return max(self.rates[shape].values())

    def seconds(self, flops: Flops) -> float:
        """What the FLOPs take at these rates; attention at the mean rate of the linear layers."""
        linear = sum(amount / self.best(shape) for shape, amount in flops.linear.items())
        total = float(flops.linear.total())
        return linear * (1 + flops.attention / total) if total else 0.0


def measure_rates(
    shapes: list[LinearShape], device: str, dtype: str, threads: int | None
) -> dict[LinearShape, dict[int, float]]:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    best = {shape: dict.fromkeys(ROWS, 0.0) for shape in shapes}
    for _ in range(_NUM_PASSES):
        for (inputs, outputs), by_rows in best.items():
            weight = torch.randn(outputs, inputs, device=device).to(kind)
            for rows in ROWS:
                seconds = _best_seconds(torch.randn(rows, inputs, device=device).to(kind), weight)
                by_rows[rows] = max(by_rows[rows], 2 * rows * inputs * outputs / seconds)
    return best


def _best_seconds(states: "torch.Tensor", weight: "torch.Tensor") -> float:
    import torch

    best, started, repeats = float("inf"), time.perf_counter(), 0
    while repeats < 2 or time.perf_counter() - started < _SECONDS_OF_A_PASS:
        before = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        if states.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - before)
        repeats += 1
    return best


def main() -> None:
    settings = json.loads(sys.argv[1])
    shapes = [(inputs, outputs) for inputs, outputs in settings["shapes"]]
    rates = measure_rates(shapes, settings["device"], settings["dtype"], settings["threads"])
    print(json.dumps([[*shape, by_rows] for shape, by_rows in rates.items()]))


if __name__ == "__main__":
    main()
