"""How fast this machine multiplies matrices of a model's shapes; its own process, one JSON line.

What an implementation could reach at best: the same libraries, threads and dtype, nothing else to
do. Of the products that torch offers, the faster: the plain one, or oneDNN's on packed weights.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.flops import Flops, LinearShape
from bench.processes import run_once
from bench.settings import BenchSettings

ROWS = (256, 1_024, 4_096)
CUDA_ROWS = (*ROWS, 16_384)
_CUDA_CALLS = 10
"""Between two synchronisations, which would otherwise be part of a short product's time."""
_SECONDS_OF_A_PASS = 0.03
_NUM_PASSES = 4
"""Apart in time, so that a moment in which something else runs does not count."""


@dataclass(frozen=True, slots=True)
class MatmulRates:
    """FLOPs a second by (inputs, outputs) and then by rows."""

    rates: dict[LinearShape, dict[int, float]]

    def best(self, shape: LinearShape) -> float:
        return max(self.rates[shape].values())

    def described(self) -> list[dict[str, Any]]:
        """For the JSON object."""
        return [
            {
                "inputs": inputs,
                "outputs": outputs,
                "gflops_per_s_by_rows": {
                    rows: round(rate / 1e9, 1) for rows, rate in by_rows.items()
                },
            }
            for (inputs, outputs), by_rows in self.rates.items()
        ]

    def seconds(self, flops: Flops) -> float:
        """What the FLOPs take at these rates; attention at the mean rate of the linear layers."""
        linear = sum(amount / self.best(shape) for shape, amount in flops.linear.items())
        total = float(flops.linear.total())
        return linear * (1 + flops.attention / total) if total else 0.0


def rates_of_machine(shapes: list[LinearShape], settings: BenchSettings) -> MatmulRates:
    """Measured in a process of its own, with as many threads as everybody. Raises PeerFailed."""
    argument = {
        "shapes": shapes,
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": settings.threads,
    }
    log = settings.workdir / "logs" / "matmul.log"
    answer = run_once("bench.matmul", argument, settings.threads, log)
    return MatmulRates(
        {
            (inputs, outputs): {int(rows): rate for rows, rate in by_rows.items()}
            for inputs, outputs, by_rows in answer
        }
    )


def measure_rates(
    shapes: list[LinearShape], device: str, dtype: str, threads: int | None
) -> dict[LinearShape, dict[int, float]]:
    import torch

    from shardrank.actors.model.linear import linear, preparation

    if threads is not None:
        torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    all_rows = CUDA_ROWS if device.startswith("cuda") else ROWS
    best = {shape: dict.fromkeys(all_rows, 0.0) for shape in shapes}
    for _ in range(_NUM_PASSES):
        for (inputs, outputs), by_rows in best.items():
            weight = torch.randn(outputs, inputs, device=device).to(kind)
            prepared = preparation(weight.device, kind)(weight)
            for rows in all_rows:
                states = torch.randn(rows, inputs, device=device).to(kind)
                seconds = min(
                    _best_seconds(partial(linear, states, form), weight.is_cuda)
                    for form in (weight, prepared)
                )
                by_rows[rows] = max(by_rows[rows], 2 * rows * inputs * outputs / seconds)
    return best


def _best_seconds(multiply: Callable[[], Any], is_cuda: bool) -> float:
    import torch

    calls = _CUDA_CALLS if is_cuda else 1
    best, started, repeats = float("inf"), time.perf_counter(), 0
    with torch.inference_mode():
        while repeats < 2 or time.perf_counter() - started < _SECONDS_OF_A_PASS:
            before = time.perf_counter()
            for _ in range(calls):
                multiply()
            if is_cuda:
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - before) / calls)
            repeats += 1
    return best


def main() -> None:
    settings = json.loads(sys.argv[1])
    shapes = [(inputs, outputs) for inputs, outputs in settings["shapes"]]
    rates = measure_rates(shapes, settings["device"], settings["dtype"], settings["threads"])
    print(json.dumps([[*shape, by_rows] for shape, by_rows in rates.items()]))


if __name__ == "__main__":
    main()
