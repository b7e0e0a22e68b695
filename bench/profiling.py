"""Where our engine's time goes: PyTorch's profiler over one workload, operator by operator.

Linear layers are told by the weight that they multiply with, and compared with the matmul rate.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.bound.flops import LinearShape
from bench.bound.matmul import MatmulRates
from bench.peers.ours import Ours
from bench.processes import run_once
from bench.results import aligned
from bench.settings import OURS, BenchSettings
from bench.workloads import Workload

_TOP = 15
_LINEAR = {
    "aten::mm": (0, 1, False),
    "aten::addmm": (1, 2, False),
    "aten::_addmm_activation": (1, 2, False),
    "mkldnn::_linear_pointwise": (0, 1, True),
}
"""Operators that linear layers end in: which of their inputs are the states and the weight, and
whether that is stored as (outputs, inputs)."""


def profile(workload: Workload, settings: BenchSettings, checkpoint: Path) -> dict[str, Any]:
    """Raises PeerFailed."""
    peer, log = settings.of_peer(OURS, checkpoint), settings.log("profile")
    answer: dict[str, Any] = run_once(
        "bench.profiling:Profiled", "profiled", workload.sets, peer, log
    )
    return answer


def profile_table(name: str, profiled: dict[str, Any], rates: MatmulRates) -> str:
    """The top operators, then each linear shape's rate beside the measured one."""
    total = profiled["self_us"]

    def spent(each: dict[str, Any]) -> list[str]:
        return [f"{each['self_us'] / 1e3:,.1f}", f"{each['self_us'] / total:.0%}"]

    tops = sorted(profiled["operators"], key=lambda each: -each["self_us"])[:_TOP]
    operators = [["operator", "calls", "self ms", "share", ""]]
    operators += [[each["name"], f"{each['calls']:,}", *spent(each), ""] for each in tops]
    shapes = [["linear layer", "rows", "self ms", "share", "GFLOP/s", "measured", "reached", ""]]
    for each in profiled["linear"]:
        rate, shape = each["flops"] / each["self_us"] * 1e6, (each["inputs"], each["outputs"])
        best = rates.best(shape) if shape in rates.rates else None
        compared = [f"{best / 1e9:,.1f}", f"{rate / best:.0%}"] if best else ["", ""]
        layer = [f"{shape[0]} to {shape[1]}", f"{each['rows']:,}"]
        shapes.append([*layer, *spent(each), f"{rate / 1e9:,.1f}", *compared, ""])
    linear = linear_summary(profiled, rates)
    return (
        f"profile of ours on {name}, {total / 1e6:,.2f} s in operators\n{aligned(operators)}\n\n"
        f"{aligned(shapes)}\nlinear layers: {linear['share_of_time']:.0%} of the time, at "
        f"{linear['share_of_matmul_rate']:.0%} of the matmul rate of their shapes\n"
    )


def linear_summary(profiled: dict[str, Any], rates: MatmulRates) -> dict[str, float]:
    """Share of the time in linear layers, and of the matmul rate that they reach together."""
    spent = sum(each["self_us"] for each in profiled["linear"])
    ideal = sum(
        each["flops"] / rates.best((each["inputs"], each["outputs"])) * 1e6
        for each in profiled["linear"]
        if (each["inputs"], each["outputs"]) in rates.rates
    )
    return {
        "share_of_time": spent / profiled["self_us"],
        "share_of_matmul_rate": ideal / spent if spent else 0.0,
    }


class Profiled(Ours):
    def profiled(self, sets: list[dict[str, Any]]) -> dict[str, Any]:
        from torch.profiler import ProfilerActivity

        self.score([sets[0] | {"documents": sets[0]["documents"][:4]}])
        self.forget()
        is_cuda = self.reranker.scorer.device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            self.score(sets)
        time_of = "self_device_time_total" if is_cuda else "self_cpu_time_total"
        events = profiler.key_averages(group_by_input_shape=True)
        is_operator = torch.autograd.DeviceType.CPU  # kernels stand beside those that ran them
        return _summed([each for each in events if each.device_type == is_operator], time_of)


def _summed(events: Any, time_of: str) -> dict[str, Any]:
    operators: dict[str, Any] = defaultdict(Counter)
    linear: dict[LinearShape, Any] = defaultdict(Counter)
    for event in events:
        self_us = float(getattr(event, time_of))
        if not self_us:
            continue
        operators[event.key]["calls"] += event.count
        operators[event.key]["self_us"] += self_us
        product = _product(event.key, event.input_shapes)
        if product is not None:
            rows, inputs, outputs = product
            one = linear[inputs, outputs]
            one["rows"] += rows * event.count
            one["self_us"] += self_us
            one["flops"] += 2.0 * rows * inputs * outputs * event.count
    products = [{"inputs": i, "outputs": o, **each} for (i, o), each in linear.items()]
    return {
        "self_us": sum(each["self_us"] for each in operators.values()),
        "operators": [{"name": name, **each} for name, each in operators.items()],
        "linear": sorted(products, key=lambda each: -each["self_us"]),
    }


def _product(name: str, shapes: Sequence[Sequence[int]]) -> tuple[int, int, int] | None:
    """(rows, inputs, outputs) where the operator is a linear layer's matrix product."""
    if name not in _LINEAR:
        return None
    states, weight, is_transposed = _LINEAR[name]
    if name == "mkldnn::_linear_pointwise" and len(shapes[2]) == 2:
        weight = 2  # its second input is what the product is multiplied with or added to
    *rows, inputs = shapes[states]
    return math.prod(rows), inputs, shapes[weight][0 if is_transposed else 1]
