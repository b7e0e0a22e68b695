"""The vision tower on many visuals at once, packed, with transformers' own weights.

uint8 pixels in; for every visual token its merged feature and its deepstack features out. Each
image and each frame pair attends to itself alone. Source: transformers' Qwen3VLVisionModel.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from actors.pixels import MERGE_SIZE, PATCH_SIZE, patchify

ROPE_THETA = 10_000.0


class VisionTower:
    """Wraps a loaded Qwen3VLVisionModel; the weights stay its own."""

    def __init__(self, visual: Any, spatial_merge_size: int) -> None:
        assert spatial_merge_size == MERGE_SIZE
        self._visual = visual
        weight = visual.patch_embed.proj.weight
        self._patch_weight = weight.reshape(weight.shape[0], -1)
        self._patch_bias = visual.patch_embed.proj.bias
        self._num_heads = visual.blocks[0].attn.num_heads
        self._deepstack = {
            layer: index for index, layer in enumerate(visual.deepstack_visual_indexes)
        }
        self._grid_side = int(visual.pos_embed.num_embeddings**0.5)
        self._positions = lru_cache(maxsize=256)(self._make_positions)

    @property
    def num_levels(self) -> int:
        """Features of a token: one for the embedding, one for each deepstack layer."""
        return 1 + len(self._deepstack)

    def encode(self, pixels: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """(tokens, num_levels, hidden) for each visual's (1 or 2, H, W, 3) uint8 pixels."""
        weight = self._patch_weight
        patches = [
            patchify(
                torch.from_numpy(np.require(v, requirements="W")).to(weight.device), weight.dtype
            )
            for v in pixels
        ]
        lengths = [len(patch) for patch in patches]
        grids = [(v.shape[1] // PATCH_SIZE, v.shape[2] // PATCH_SIZE) for v in pixels]
        tables = [self._positions(height, width) for height, width in grids]
        hidden = functional.linear(torch.cat(patches), weight, self._patch_bias)
        hidden += torch.cat([table[0] for table in tables])
        rope = torch.cat([table[1] for table in tables]), torch.cat([t[2] for t in tables])
        features = self._run_blocks(hidden, rope, lengths)
        return list(features.split([length // MERGE_SIZE**2 for length in lengths]))

    def _run_blocks(
        self, hidden: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], lengths: list[int]
    ) -> torch.Tensor:
        levels: list[torch.Tensor] = []
        for layer, block in enumerate(self._visual.blocks):
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), rope, lengths)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if layer in self._deepstack:
                levels.append(self._visual.deepstack_merger_list[self._deepstack[layer]](hidden))
        return torch.stack([self._visual.merger(hidden), *levels], dim=1)

    def _attend(
        self,
        attention: Any,
        hidden: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        lengths: list[int],
    ) -> torch.Tensor:
        qkv = attention.qkv(hidden).view(len(hidden), 3, self._num_heads, -1)
        query, key = (rotate(part, *rope) for part in (qkv[:, 0], qkv[:, 1]))
        value = qkv[:, 2]
        output = torch.empty_like(query)
        start = 0
        for length, run in groupby(lengths):  # neighbours of one size form one batch
            end = start + length * len(list(run))
            q, k, v = (
                part[start:end].unflatten(0, (-1, length)).transpose(1, 2)
                for part in (query, key, value)
            )
            attended = functional.scaled_dot_product_attention(q, k, v)
            output[start:end] = attended.transpose(1, 2).flatten(0, 1)
            start = end
        return attention.proj(output.flatten(1))

    def _make_positions(
        self, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Position embeddings (N, hidden) and rope's cos, sin (N, 1, head_dim) of one grid."""
        weight = self._visual.pos_embed.weight
        rows, columns = _merge_order(height, width)
        embedding = self._interpolated(rows, columns, height, width)
        head_dim = weight.shape[1] // self._num_heads
        steps = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
        inverse = 1.0 / ROPE_THETA**steps
        angles = torch.cat([rows[:, None] * inverse, columns[:, None] * inverse], dim=1)
        angles = torch.cat([angles, angles], dim=1)[:, None].to(weight.device)
        return embedding.to(weight.dtype), angles.cos(), angles.sin()

    def _interpolated(
        self, rows: torch.Tensor, columns: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """The square learned table, bilinear with corners aligned, at each patch: (N, hidden)."""
        weight = self._visual.pos_embed.weight
        top, bottom, down = _neighbours(rows, height, self._grid_side)
        left, right, across = _neighbours(columns, width, self._grid_side)
        corners = (
            (top, left, (1 - down) * (1 - across)),
            (top, right, (1 - down) * across),
            (bottom, left, down * (1 - across)),
            (bottom, right, down * across),
        )
        parts = [
            weight[(row * self._grid_side + column).to(weight.device)]
            * share[:, None].to(weight.device, weight.dtype)
            for row, column, share in corners
        ]
        return torch.stack(parts).sum(0)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in float32: states (N, heads, D), cos and sin (N, 1, D)."""
    real, imaginary = states.float().chunk(2, dim=-1)
    turned = torch.cat((-imaginary, real), dim=-1)
    return (states * cos + turned * sin).to(states.dtype)


def _merge_order(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each patch, 2 x 2 blocks together."""
    index = torch.arange(height * width).view(
        height // MERGE_SIZE, MERGE_SIZE, width // MERGE_SIZE, MERGE_SIZE
    )
    order = index.transpose(1, 2).flatten()
    return order // width, order % width


def _neighbours(
    positions: torch.Tensor, size: int, side: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Table entries before and behind each position of a grid of `size`, and the way between."""
    exact = torch.linspace(0, side - 1, size)[positions]
    before = exact.int()
    return before.long(), (before + 1).clamp(max=side - 1).long(), exact - before
