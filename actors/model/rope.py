"""Rotary embedding on interleaved dimensions, in one pass as a product of complex numbers.

transformers rotates dimension i with i + D / 2. Here the rows of the weights that make queries and
keys are ordered so that the two are neighbours, which changes no product of a query with a key.
"""

import torch


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
