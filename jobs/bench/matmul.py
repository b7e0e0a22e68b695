"""How fast this machine multiplies matrices of a model's shapes; its own process, one JSON line.

What an implementation could reach at best: the same library, threads and dtype, nothing else to do.
"""

import json
import sys
import time
from dataclasses import dataclass

from jobs.bench.flops import Flops, LinearShape

ROWS = (256, 1_024, 4_096)
_SECONDS_OF_A_SHAPE = 0.4
_MIN_REPEATS = 3


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
    rates: dict[LinearShape, dict[int, float]] = {}
    for inputs, outputs in shapes:
        weight = torch.randn(outputs, inputs, device=device).to(kind)
        rates[inputs, outputs] = {}
        for rows in ROWS:
            states = torch.randn(rows, inputs, device=device).to(kind)
            seconds = _best_seconds(lambda s=states, w=weight: torch.nn.functional.linear(s, w))
            rates[inputs, outputs][rows] = 2 * rows * inputs * outputs / seconds
    return rates


def _best_seconds(call: object) -> float:
    import torch

    assert callable(call)
    best, started, repeats = float("inf"), time.perf_counter(), 0
    while repeats < _MIN_REPEATS or time.perf_counter() - started < _SECONDS_OF_A_SHAPE:
        before = time.perf_counter()
        call()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
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
