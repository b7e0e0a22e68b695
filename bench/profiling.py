"""Where our engine's time goes: pages a second of its CPU half alone, on one core, and PyTorch's
profiler over one workload, operator by operator. Linear layers are told by the weight that they
multiply with, and compared with the matmul rate.
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.bound.flops import LinearShape
from bench.bound.matmul import MatmulRates
from bench.media import write_page
from bench.peers.ours import Ours
from bench.peers.protocol import Peer, PeerSettings
from bench.processes import run_once
from bench.progress import progress
from bench.results import Part, aligned
from bench.settings import OURS, BenchSettings
from bench.workloads import Workload
from shardrank.actors import CandidateSet, RerankerConfig
from shardrank.actors.preprocessor import Preprocessor

_PAGE_TOKENS, _NUM_PAGES, _CORES = 1_300, 40, 8
# Operators that linear layers end in: which of their inputs are the states and the weight, and
# whether that is stored as (outputs, inputs).
_LINEAR = {
    "aten::mm": (0, 1, False),
    "aten::addmm": (1, 2, False),
    "aten::_addmm_activation": (1, 2, False),
    "mkldnn::_linear_pointwise": (0, 1, True),
}


def measure_profile(
    workload: Workload, settings: BenchSettings, checkpoint: Path, rates: MatmulRates
) -> Part:
    """The top operators, then each linear shape's rate beside the measured one."""
    progress(f"profiling ours on {workload.name}")
    peer, log = settings.of_peer(OURS, checkpoint), settings.log("profile")
    profiled = run_once("bench.profiling:Profiled", "profiled", workload.sets, peer, log)
    total, spent, ideal = profiled["self_us"], 0.0, 0.0
    cells = [["linear layer", "rows", "self ms", "share", "GFLOP/s", "measured", "reached", ""]]
    for (inputs, outputs), rows, self_us in profiled["linear"]:
        best = rates.best((inputs, outputs)) if (inputs, outputs) in rates.rates else float("nan")
        rate = 2e6 * rows * inputs * outputs / self_us
        spent, ideal = spent + self_us, ideal + self_us * (rate / best if best > 0 else 0)
        numbers = [f"{self_us / 1e3:,.1f}", f"{self_us / total:.0%}", f"{rate / 1e9:,.1f}"]
        compared = [f"{best / 1e9:,.1f}", f"{rate / best:.0%}", ""]
        cells.append([f"{inputs} to {outputs}", f"{rows:,}", *numbers, *compared])
    linear = {"share_of_time": spent / total, "share_of_matmul_rate": ideal / max(spent, 1e-9)}
    text = (
        f"profile of ours on {workload.name}, {total / 1e6:,.2f} s in operators\n"
        f"{profiled['table']}\n{aligned(cells)}\n"
        f"linear layers: {linear['share_of_time']:.0%} of the time, at "
        f"{linear['share_of_matmul_rate']:.0%} of the matmul rate of their shapes\n"
    )
    return {"workload": workload.name, "matmul": rates.described(), **linear}, text, []


class Profiled(Ours):
    def profiled(self, sets: list[dict[str, Any]]) -> dict[str, Any]:
        """Microseconds in all operators, their table, and of each linear layer's shape its rows and
        microseconds.
        """
        from torch.profiler import ProfilerActivity

        self.score([sets[0] | {"documents": sets[0]["documents"][:4]}])
        self.forget()
        is_cuda = self.reranker.scorer.device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            self.score(sets)
        time_of = f"self_{'device' if is_cuda else 'cpu'}_time_total"
        linear: dict[LinearShape, list[float]] = defaultdict(lambda: [0, 0.0])
        total = 0.0
        for event in profiler.key_averages(group_by_input_shape=True):
            if event.device_type == torch.autograd.DeviceType.CPU:  # kernels stand beside theirs
                self_us = float(getattr(event, time_of))
                total += self_us
                for rows, inputs, outputs in _products(event.key, event.input_shapes):
                    linear[inputs, outputs][0] += rows * event.count
                    linear[inputs, outputs][1] += self_us
        table = profiler.key_averages().table(time_of, row_limit=15, max_name_column_width=50)
        layers = [(shape, *each) for shape, each in linear.items()]
        return {"self_us": total, "table": table, "linear": layers}


def _products(name: str, shapes: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int]]:
    """(rows, inputs, outputs) where the operator is a linear layer's matrix product."""
    if name in _LINEAR:
        states, weight, is_transposed = _LINEAR[name]
        if name == "mkldnn::_linear_pointwise" and len(shapes[2]) == 2:
            weight = 2  # its second input is what the product is multiplied with or added to
        *rows, inputs = shapes[states]
        yield math.prod(rows), inputs, shapes[weight][0 if is_transposed else 1]


def measure_preprocessing(settings: BenchSettings, checkpoint: Path) -> Part:
    """Preprocessing, timed by image format. Raises PeerFailed."""
    progress("preprocess: pages on one core")
    figures, text = {}, ""
    folder = settings.workdir / "media" / f"pages-{_PAGE_TOKENS}"
    for suffix in ("jpg", "png"):
        pages = [
            write_page(
                folder / f"{number:04}.{suffix}", f"{settings.seed}:{suffix}:{number}", _PAGE_TOKENS
            )
            for number in range(max(2, round(_NUM_PAGES * settings.scale)))
        ]
        one = figures[suffix] = run_once(
            "bench.profiling:Pages",
            "measured",
            {"pages": pages, "rounds": settings.rounds},
            PeerSettings(str(checkpoint)),
            settings.log("preprocessing"),
        )
        text += (
            f"preprocess: {suffix}: {one['pages_per_s']:,.1f} pages/s of {one['tokens']:,} tokens "
            f"on one core (times {_CORES} cores, an extrapolation: "
            f"{one['pages_per_s'] * _CORES:,.0f})\n"
        )
    return figures, text, []


class Pages(Peer):
    def __init__(self, settings: PeerSettings) -> None:
        self._config = RerankerConfig(model=settings.model)

    def measured(self, argument: dict[str, Any]) -> dict[str, Any]:
        pages, rounds = argument["pages"], argument["rounds"]
        self._prepare(pages[:2])
        runs = [self._prepare(pages) for _ in range(rounds)]
        seconds = statistics.median_high(seconds for seconds, _ in runs)
        return {"pages_per_s": len(pages) / seconds, "tokens": runs[0][1]}

    def _prepare(self, pages: list[str]) -> tuple[float, int]:
        """Seconds, and visual tokens of a page, with nothing in any cache."""
        preprocessor = Preprocessor(self._config)
        parsed = [CandidateSet.parse("which page?", [{"image": page}]) for page in pages]
        before = time.perf_counter()
        prepared = [preprocessor.prepare(one) for one in parsed]
        return time.perf_counter() - before, prepared[0].visuals[0].num_tokens
