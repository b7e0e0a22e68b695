"""Where our engine's time goes: PyTorch's profiler over one workload, operator by operator.

Linear layers are told by the weight that they multiply with, and compared with the matmul rate.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.flops import LinearShape
from bench.matmul import MatmulRates
from bench.processes import run_once
from bench.settings import BenchSettings
from bench.tables import aligned
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
    argument = {
        "workload": str(workload.save(settings.workdir / "workloads")),
        "model": str(checkpoint),
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "max_batch_tokens": settings.max_batch_tokens,
        "extra": settings.engine,
    }
    log = settings.workdir / "logs" / "profile.log"
    answer: dict[str, Any] = run_once("bench.profiling", argument, settings.threads, log)
    return answer


def profile_table(name: str, profiled: dict[str, Any], rates: MatmulRates) -> str:
    """The top operators, then each linear shape's rate beside the measured one."""
    total = profiled["self_us"]
    tops = sorted(profiled["operators"], key=lambda each: -each["self_us"])[:_TOP]
    operators = [["operator", "calls", "self ms", "share", ""]]
    operators += [
        [
            each["name"],
            f"{each['calls']:,}",
            f"{each['self_us'] / 1e3:,.1f}",
            f"{each['self_us'] / total:.0%}",
            "",
        ]
        for each in tops
    ]
    shapes = [["linear layer", "rows", "self ms", "share", "GFLOP/s", "measured", "reached", ""]]
    for each in profiled["linear"]:
        measured = rates.rates.get((each["inputs"], each["outputs"]))
        best = max(measured.values()) if measured else None
        rate = each["flops"] / each["self_us"] * 1e6
        shapes.append(
            [
                f"{each['inputs']} to {each['outputs']}",
                f"{each['rows']:,}",
                f"{each['self_us'] / 1e3:,.1f}",
                f"{each['self_us'] / total:.0%}",
                f"{rate / 1e9:,.1f}",
                f"{best / 1e9:,.1f}" if best else "",
                f"{rate / best:.0%}" if best else "",
                "",
            ]
        )
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


def main() -> None:
    settings = json.loads(sys.argv[1])
    sets = json.loads(Path(settings.pop("workload")).read_text(encoding="utf-8"))["sets"]
    print(json.dumps(_profiled(settings, sets)))


def _profiled(settings: dict[str, Any], sets: list[dict[str, Any]]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity

    from bench.peers.ours import Ours
    from bench.peers.protocol import PeerSettings

    ours = Ours(PeerSettings(**settings))
    ours.score([sets[0] | {"documents": sets[0]["documents"][:4]}])
    ours.forget()
    is_cuda = settings["device"].startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        ours.score(sets)
    time_of = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    events = profiler.key_averages(group_by_input_shape=True)
    is_operator = torch.autograd.DeviceType.CPU  # kernels are listed beside the ones that ran them
    return _summed([each for each in events if each.device_type == is_operator], time_of)


def _summed(events: Any, time_of: str) -> dict[str, Any]:
    operators: dict[str, dict[str, Any]] = {}
    linear: dict[LinearShape, dict[str, Any]] = {}
    for event in events:
        self_us = float(getattr(event, time_of))
        if not self_us:
            continue
        own = operators.setdefault(event.key, {"name": event.key, "calls": 0, "self_us": 0.0})
        own["calls"] += event.count
        own["self_us"] += self_us
        product = _product(event.key, event.input_shapes)
        if product is not None:
            rows, inputs, outputs = product
            one = linear.setdefault(
                (inputs, outputs),
                {"inputs": inputs, "outputs": outputs, "rows": 0, "self_us": 0.0, "flops": 0.0},
            )
            one["rows"] += rows * event.count
            one["self_us"] += self_us
            one["flops"] += 2.0 * rows * inputs * outputs * event.count
    return {
        "self_us": sum(each["self_us"] for each in operators.values()),
        "operators": list(operators.values()),
        "linear": sorted(linear.values(), key=lambda each: -each["self_us"]),
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


if __name__ == "__main__":
    main()
