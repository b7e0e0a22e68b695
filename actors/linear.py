"""Linear layers, in the model's dtype or in fp8.

fp8 is off by default: weights by output row and activations by token are scaled to float8_e4m3 as
they come (dynamic, no calibration), the product is accumulated in float32.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(FP8).max


class Fp8Weight(NamedTuple):
    values: torch.Tensor  # (out, in) float8_e4m3
    scale: torch.Tensor  # (out, 1) float32


Weight = torch.Tensor | Fp8Weight


def linear(states: torch.Tensor, weight: Weight) -> torch.Tensor:
    """(..., in) to (..., out), without a bias."""
    if isinstance(weight, torch.Tensor):
        return functional.linear(states, weight)
    values, scale = quantize_rows(states)
    if states.is_cuda:
        return torch._scaled_mm(
            values,
            weight.values.t(),
            scale_a=scale,
            scale_b=weight.scale.t(),
            out_dtype=states.dtype,
            use_fast_accum=True,
        )
    # The same numbers without the hardware, so that fp8's deviation can be measured anywhere.
    product = functional.linear(values.float(), weight.values.float())
    return (product * scale * weight.scale.t()).to(states.dtype)


def quantize_rows(rows: torch.Tensor) -> Fp8Weight:
    """Each row by its own scale, its largest magnitude becoming fp8's largest."""
    largest = rows.abs().amax(dim=-1, keepdim=True).float()
    scale = largest.clamp(min=1e-12) / _FP8_MAX
    return Fp8Weight((rows.float() / scale).clamp(-_FP8_MAX, _FP8_MAX).to(FP8), scale)


def supports_fp8(device: torch.device) -> bool:
    """Whether the device multiplies fp8 itself, or (a CPU) imitates it."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)
