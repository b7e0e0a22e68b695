"""How fast this machine multiplies matrices of a model's shapes, in a process of its own.

What an implementation could reach at best: the same libraries, threads and dtype, nothing else to
do. Of the products that torch offers, the faster: the plain one, or oneDNN's on packed weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bound.flops import Flops, LinearShape, ModelShape
from bench.bound.work import Counted, flops_of
from bench.peers.protocol import Peer, PeerSettings
from bench.processes import run_once
from bench.progress import progress
from bench.settings import OURS, BenchSettings

ROWS = (256, 1_024, 4_096)
CUDA_ROWS = (*ROWS, 16_384)
_SECONDS_OF_A_PASS = 0.03
_NUM_PASSES = 4  # apart in time, so that a moment in which something else runs does not count


@dataclass(frozen=True, slots=True)
class MatmulRates:
    """FLOPs a second by (inputs, outputs) and then by rows."""

    rates: dict[LinearShape, dict[int, float]]

    def best(self, shape: LinearShape) -> float:
        return max(self.rates[shape].values())

    def described(self) -> list[dict[str, Any]]:
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
    shape: ModelShape, counted: Sequence[Counted], settings: BenchSettings, checkpoint: Path
) -> MatmulRates:
    """The rates of all shapes that the workloads need, with as many threads as everybody.

    Raises PeerFailed.
    """
    progress("measuring the matmul rate")
    shapes = sorted({each for one in counted for each in flops_of("needed", one, shape).linear})
    peer, log = settings.of_peer(OURS, checkpoint), settings.log("matmul")
    answer = run_once("bench.bound.matmul:Matmul", "rates", shapes, peer, log)
    rates = (dict(zip(rows_of(peer), each, strict=True)) for each in answer)
    return MatmulRates(dict(zip(shapes, rates, strict=True)))


def rows_of(settings: PeerSettings) -> tuple[int, ...]:
    return CUDA_ROWS if settings.device.startswith("cuda") else ROWS


class Matmul(Peer):
    def __init__(self, settings: PeerSettings) -> None:
        self._settings = settings

    def rates(self, shapes: Sequence[LinearShape]) -> list[list[float]]:
        """FLOPs a second of each shape at each number of rows."""
        all_rows = rows_of(self._settings)
        best = [[0.0] * len(all_rows) for _ in shapes]
        for _ in range(_NUM_PASSES):
            for shape, rates in zip(shapes, best, strict=True):
                for index, rows in enumerate(all_rows):
                    rates[index] = max(rates[index], self._rate(rows, *shape))
        return best

    def _rate(self, rows: int, inputs: int, outputs: int) -> float:
        import torch
        from torch.utils.benchmark import Timer

        from shardrank.actors.model.linear import linear, preparation

        device, dtype = self._settings.device, getattr(torch, self._settings.dtype)
        weight, states = (
            torch.randn(shape, device=device).to(dtype)
            for shape in ((outputs, inputs), (rows, inputs))
        )
        seconds = []
        for form in (weight, preparation(weight.device, dtype)(weight)):
            named = {"linear": linear, "states": states, "form": form}
            timer = Timer(
                "linear(states, form)", globals=named, num_threads=torch.get_num_threads()
            )
            with torch.inference_mode():
                seconds += timer.blocked_autorange(min_run_time=_SECONDS_OF_A_PASS).times
        return 2 * rows * inputs * outputs / min(seconds)
