"""Rotary embedding on interleaved dimensions, in one pass as a product of complex numbers.

transformers rotates dimension i with i + D / 2. Here the rows of the weights that make queries and
keys are ordered so that the two are neighbours, which changes no product of a query with a key.
"""

from collections.abc import Mapping
from typing import Any

import torch

from shardrank.actors.model.architecture import TEXT_MODEL, TextConfig


def frequencies(text: TextConfig) -> tuple[torch.Tensor, float, list[int]]:
    """Inverse frequencies (head_dim / 2,) float32, the scale of their cosines and sines, and how
    many of them turn with time, height and width. Raises ValueError where the configuration asks
    for what transformers does not have."""
    given = text.source
    parameters = given.get("rope_scaling") or given.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ValueError(f"config.json has a rope_scaling that is no object: {parameters!r:.100}")
    sections = parameters.get("mrope_section", [24, 20, 20])
    if parameters.get("rope_type", parameters.get("type", "default")) != "default":
        return *_scaled_frequencies(given), sections
    usual = 10_000.0 if given.get("model_type") == TEXT_MODEL else 500_000.0
    theta = parameters.get("rope_theta", given.get("rope_theta", usual))
    if not isinstance(theta, int | float):
        raise ValueError(f"config.json has a rope_theta that is no number: {theta!r:.100}")
    steps = torch.arange(0, text.head_dim, 2, dtype=torch.float32) / text.head_dim
    return 1.0 / theta**steps, 1.0, sections


def _scaled_frequencies(text_config: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """YaRN and the like, as transformers has them."""
    from transformers import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    try:
        rotary = Qwen3VLTextRotaryEmbedding(Qwen3VLTextConfig(**text_config))
    except Exception as error:  # of many kinds: an unknown type is a KeyError
        raise ValueError(f"config.json has a rope that cannot be made: {error!r:.300}") from error
    return rotary.inv_freq.float(), float(rotary.attention_scaling)


def interleaved(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows (heads * D, ...) in the order 0, D / 2, 1, D / 2 + 1, ... within each head."""
    heads = rows.unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate in float32: states (N, heads, D) interleaved, cos and sin (N, 1, D / 2)."""
    pairs = states.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuses this, and knows no complex numbers
        real, imaginary = pairs.unbind(-1)
        turned = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(states.dtype)
