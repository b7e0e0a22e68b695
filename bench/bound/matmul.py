"""How fast this machine multiplies matrices of a model's shapes, in a process of its own.

What an implementation could reach at best: the same libraries, threads and dtype, nothing else to
do. Of the products that torch offers, the faster: the plain one, or oneDNN's on packed weights.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.bound.flops import Flops, LinearShape
from bench.peers.protocol import Peer, PeerSettings
from bench.processes import run_once

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


def rates_of_machine(
    shapes: Sequence[LinearShape], settings: PeerSettings, log: Path
) -> MatmulRates:
    """With as many threads as everybody. Raises PeerFailed."""
    answer = run_once("bench.bound.matmul:Matmul", "rates", shapes, settings, log)
    return MatmulRates(
        {
            shape: dict(zip(rows_of(settings), rates, strict=True))
            for shape, rates in zip(shapes, answer, strict=True)
        }
    )


def rows_of(settings: PeerSettings) -> tuple[int, ...]:
    return CUDA_ROWS if settings.device.startswith("cuda") else ROWS


class Matmul(Peer):
    def __init__(self, settings: PeerSettings) -> None:
        self._settings = settings

    def rates(self, shapes: Sequence[LinearShape]) -> list[list[float]]:
        """FLOPs a second of each shape at each number of rows."""
        import torch

        from shardrank.actors.model.linear import linear, preparation

        device, kind = self._settings.device, getattr(torch, self._settings.dtype)
        all_rows = rows_of(self._settings)
        best = [[0.0] * len(all_rows) for _ in shapes]
        for _ in range(_NUM_PASSES):
            for (inputs, outputs), rates in zip(shapes, best, strict=True):
                weight = torch.randn(outputs, inputs, device=device).to(kind)
                prepared = preparation(weight.device, kind)(weight)
                for index, rows in enumerate(all_rows):
                    states = torch.randn(rows, inputs, device=device).to(kind)
                    seconds = min(
                        _best_seconds(partial(linear, states, form), weight.is_cuda)
                        for form in (weight, prepared)
                    )
                    rates[index] = max(rates[index], 2 * rows * inputs * outputs / seconds)
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
