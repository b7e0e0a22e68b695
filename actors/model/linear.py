"""Linear layers with what follows them, by the kernel that fits the weight's form.

As it is: the device's own matrix product. Packed: oneDNN's blocked layout, on x86 CPUs, where the
activation and the product or sum behind it cost no pass over memory (1.3 to 1.4 times the speed
for an MLP of 512 x 1536). fp8, off by default: weights by output row and activations by token are
scaled to float8_e4m3 as they come (dynamic, no calibration); the product is accumulated as the
device's fast fp8 instructions do, which on Hopper is in fewer bits than float32.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional

from shardrank.actors.model.foreign import FP8_BLOCK, FP8_DTYPE, own_weight

FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(FP8).max
_PACKED_FOR_ROWS = 4_096
"""The number of rows that the blocked layout is chosen for; others only run a little slower."""

Activation = Literal["none", "silu", "gelu", "gelu_tanh"]


class Fp8Rows(NamedTuple):
    """A weight by output row, or states by token."""

    values: torch.Tensor  # (N, in) float8_e4m3
    scale: torch.Tensor  # (N, 1) float32
    dtype: torch.dtype  # before


class PackedWeight(NamedTuple):
    values: torch.Tensor  # opaque


Weights = dict[str, torch.Tensor]
"""A model's tensors by architecture.own_name; whoever takes one over takes it out."""
Weight = torch.Tensor | Fp8Rows | PackedWeight
Prepare = Callable[[torch.Tensor], Weight]
"""Brings a weight (out, in) into its form."""


def ready(states: torch.Tensor, weight: Weight) -> "torch.Tensor | Fp8Rows":
    """States for several layers of this weight's form, rounded once for all of them."""
    return quantize_rows(states) if isinstance(weight, Fp8Rows) else states


def linear(
    states: "torch.Tensor | Fp8Rows",
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    activation: Activation = "none",
    times: torch.Tensor | None = None,
    plus: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, in) to (N, out); then the activation, or the product with or the sum with (N, out)."""
    if isinstance(weight, Fp8Rows):
        assert bias is None
        rows = states if isinstance(states, Fp8Rows) else quantize_rows(states)
        product = _fp8_linear(rows, weight)
    else:
        assert not isinstance(states, Fp8Rows)
        if isinstance(weight, PackedWeight):
            return _packed_linear(states, weight, bias, activation, times, plus)
        product = functional.linear(states, weight, bias)
    if activation == "silu":
        product = functional.silu(product, inplace=True)
    elif activation != "none":
        product = functional.gelu(product, approximate=_GELU[activation])
    if times is not None:
        product.mul_(times)
    return product if plus is None else product.add_(plus)


_GELU = {"gelu": "none", "gelu_tanh": "tanh"}


def preparation(device: torch.device, dtype: torch.dtype, is_compiled: bool = False) -> Prepare:
    """The form that is fastest on the device: packed where oneDNN has it, unless a compiler sees
    to the fusion."""
    is_eager_cpu = device.type == "cpu" and not is_compiled
    return pack_weight if is_eager_cpu and _packs(dtype) else lambda weight: weight


def _packs(dtype: torch.dtype) -> bool:
    is_x86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if not is_x86 or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    # The operators that torch's own compiler emits for CPUs; they have no public name.
    return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS))


def _packed_linear(
    states: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    activation: Activation,
    times: torch.Tensor | None,
    plus: torch.Tensor | None,
) -> torch.Tensor:
    operator: Any = torch.ops.mkldnn._linear_pointwise
    other = times if plus is None else plus
    if other is None:
        name = {"silu": "swish", "gelu_tanh": "gelu"}.get(activation, activation)
        return operator(states, weight.values, bias, name, [], _GELU.get(activation, ""))
    assert activation == "none"
    kind = "mul" if plus is None else "add"
    return operator.binary(states, other, weight.values, bias, kind)


def _fp8_linear(states: Fp8Rows, weight: Fp8Rows) -> torch.Tensor:
    if states.values.is_cuda:
        return torch._scaled_mm(
            states.values,
            weight.values.t(),
            scale_a=states.scale,
            scale_b=weight.scale.t(),
            out_dtype=states.dtype,
            use_fast_accum=True,
        )
    # The same numbers without the hardware, so that fp8's deviation can be measured anywhere.
    product = functional.linear(states.values.float(), weight.values.float())
    return (product * states.scale * weight.scale.t()).to(states.dtype)


def quantize_rows(rows: torch.Tensor) -> Fp8Rows:
    """Each row by its own scale, its largest magnitude becoming fp8's largest."""
    largest = rows.abs().amax(dim=-1, keepdim=True).float()
    scale = largest.clamp(min=1e-12) / _FP8_MAX
    values = (rows.float() / scale).clamp(-_FP8_MAX, _FP8_MAX).to(FP8)
    return Fp8Rows(values, scale, rows.dtype)


def supports_fp8(device: torch.device) -> bool:
    """Whether the device multiplies fp8 itself, or (a CPU) imitates it."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)


def dequantize(weights: Weights, dtype: torch.dtype | None) -> None:
    """Put numbers of the dtype (None: float32) in the place of weights with a scale.

    Raises ValueError for a weight without a scale, or a scale that does not fit.
    """
    scales = {own_weight(name): name for name in weights if own_weight(name) != name}
    for name, scale_name in scales.items():
        scale = weights.pop(scale_name).float()
        if name not in weights:
            raise ValueError(f"{scale_name} is the scale of {name}, which is not there")
        weights[name] = _scaled(name, weights[name].float(), scale).to(dtype or torch.float32)
    for name, weight in weights.items():
        if weight.dtype == torch.float8_e4m3fn:
            raise ValueError(f"{name} is in {FP8_DTYPE} and has no scale")


def _scaled(name: str, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if scale.numel() == 1:
        return values * scale.reshape(())
    rows, columns = values.shape
    if scale.shape in ((rows,), (rows, 1)):
        return values * scale.reshape(rows, 1)
    blocks = tuple(-(-size // FP8_BLOCK) for size in (rows, columns))
    if scale.shape != blocks:
        raise ValueError(f"{name} of shape {[rows, columns]} has a scale of {list(scale.shape)}")
    high = scale.repeat_interleave(FP8_BLOCK, 0)[:rows]
    return values * high.repeat_interleave(FP8_BLOCK, 1)[:, :columns]
