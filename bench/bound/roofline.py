"""What a workload would take on a GPU at best: a model from data sheets, and no measurement.

A layer takes the longer of its FLOPs at the device's 16-bit rate and its bytes at the memory's:
states in and out, and its weights once a plan. Norms, rotations and launches take nothing.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.bound.flops import Flops, ModelShape
from shardrank.actors.scorer import MAX_BATCH_TOKENS

_BYTES_OF_A_VALUE = 2


@dataclass(frozen=True, slots=True)
class Gpu:
    """Dense bfloat16 FLOPs and bytes of memory a second."""

    name: str
    flops_per_s: float
    bytes_per_s: float


# The SXM forms, from NVIDIA's data sheets of the H100 and H200.
GPUS = (Gpu("H100", 989e12, 3.35e12), Gpu("H200", 989e12, 4.8e12))


def model_seconds(needed: Flops, shape: ModelShape, num_tokens: int, gpu: Gpu) -> float:
    """num_tokens: those to compute, which go through in plans."""
    num_plans = math.ceil(num_tokens / MAX_BATCH_TOKENS)
    seconds = needed.attention / gpu.flops_per_s
    # The vision tower's are few beside them.
    weights = Counter([*shape.decoder.key_value, *shape.decoder.rest] * shape.decoder.layers)
    for (inputs, outputs), flops in needed.linear.items():
        rows = flops / (2 * inputs * outputs)
        num_weights = weights[inputs, outputs] * inputs * outputs
        values = rows * (inputs + outputs) + num_plans * num_weights
        memory = _BYTES_OF_A_VALUE * values / gpu.bytes_per_s
        seconds += max(flops / gpu.flops_per_s, memory)
    return seconds


def roofline(needed: Flops, shape: ModelShape, num_tokens: int, num_pairs: int) -> dict[str, Any]:
    """Each GPU with its seconds and pairs a second, for the JSON object."""
    seconds = {gpu.name: model_seconds(needed, shape, num_tokens, gpu) for gpu in GPUS}
    return {
        name: {"model_seconds": each, "model_pairs_per_s": num_pairs / each}
        for name, each in seconds.items()
    }


def roofline_line(figures: dict[str, Any]) -> str:
    parts = [
        f"{each['model_seconds']:,.3g} s on an {name} ({each['model_pairs_per_s']:,.0f} pairs/s)"
        for name, each in figures.items()
    ]
    return f"a model, not measured: at data sheets' rates {', '.join(parts)}"
