"""The vision tower on many visuals at once, packed.

uint8 pixels in; for every visual token its merged feature and its deepstack features out. Each
image and each frame pair attends to itself alone. Source: transformers' Qwen3VLVisionModel.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from shardrank.actors.lru import LRU
from shardrank.actors.media.pixels import FACTOR, MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from shardrank.actors.model.architecture import VisionConfig
from shardrank.actors.model.attention import VarlenKernel, cumulative, kernel_for
from shardrank.actors.model.device import maybe_compiled, to_device
from shardrank.actors.model.linear import Prepare, Weight, Weights, linear, preparation
from shardrank.actors.model.rope import interleaved, rotate

ROPE_THETA = 10_000.0
LAYER_NORM_EPSILON = 1e-6
POSITIONS_BYTES = 256 << 20
"""The cache of grids seen before; one of 1,800 tokens takes 19 MB in the 8B."""


class Affine(NamedTuple):
    weight: Weight
    bias: torch.Tensor


class Norm(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor


class BlockWeights(NamedTuple):
    """Tensors and a number alone, so that one compiled graph serves every block."""

    norm1: Norm
    qkv: Affine
    proj: Affine
    norm2: Norm
    up: Affine
    down: Affine
    num_heads: int


class MergerWeights(NamedTuple):
    """From a 2 x 2 block of patches to a token; the norm comes before or after they are joined."""

    norm: Norm
    up: Affine
    down: Affine
    is_norm_after_joining: bool


class VisionTower:
    """Takes the tensors `visual.*` out of a checkpoint's weights.

    is_compiled: a block's parts before and after attention are compiled, on first use.
    """

    def __init__(self, weights: Weights, vision: VisionConfig, is_compiled: bool = False) -> None:
        assert vision.spatial_merge_size == MERGE_SIZE
        patch_weight = weights.pop("visual.patch_embed.proj.weight")
        self._device, self._dtype = patch_weight.device, patch_weight.dtype
        prepare = preparation(self._device, self._dtype, is_compiled)
        patch_bias = weights.pop("visual.patch_embed.proj.bias")
        self._patch = Affine(prepare(patch_weight.flatten(1)), patch_bias)
        self._position_table = weights.pop("visual.pos_embed.weight")
        self._num_heads = vision.num_heads
        self._blocks = [
            _block_weights(_Taker(weights, f"visual.blocks.{index}", prepare), vision.num_heads)
            for index in range(vision.depth)
        ]
        self._project = maybe_compiled(_project, is_compiled)
        self._finish = maybe_compiled(_finish, is_compiled)
        self._merger = _merger_weights(_Taker(weights, "visual.merger", prepare), False)
        self._deepstack = {}
        for index, layer in enumerate(vision.deepstack_visual_indexes):
            taker = _Taker(weights, f"visual.deepstack_merger_list.{index}", prepare)
            self._deepstack[layer] = _merger_weights(taker, True)
        self._grid_side = int(vision.num_position_embeddings**0.5)
        self._known_positions: LRU[tuple[int, int], _Positions] = LRU(POSITIONS_BYTES)

    @property
    def num_levels(self) -> int:
        """Features of a token: one for the embedding, one for each deepstack layer."""
        return 1 + len(self._deepstack)

    def encode(self, pixels: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """(tokens, num_levels, hidden) for each visual's (1 or 2, H, W, 3) uint8 pixels."""
        patches = [patchify(to_device(visual, self._device), self._dtype) for visual in pixels]
        lengths = [len(patch) for patch in patches]
        grids = [(v.shape[1] // PATCH_SIZE, v.shape[2] // PATCH_SIZE) for v in pixels]
        tables = [self._positions(height, width) for height, width in grids]
        hidden = linear(torch.cat(patches), *self._patch)
        embedding, *rope = map(torch.cat, zip(*tables, strict=True))
        hidden += embedding
        features = self._run_blocks(hidden, rope, lengths)
        return list(features.split([length // MERGE_SIZE**2 for length in lengths]))

    def _run_blocks(
        self, hidden: torch.Tensor, rope: Sequence[torch.Tensor], lengths: list[int]
    ) -> torch.Tensor:
        levels: list[torch.Tensor] = []
        kernel = kernel_for(hidden.device, hidden.dtype)
        attend = _by_size(lengths) if kernel is None else _varlen(lengths, hidden.device, kernel)
        for layer, weights in enumerate(self._blocks):
            attended = attend(*self._project(hidden, *rope, weights))
            hidden = self._finish(hidden, attended, weights)
            if layer in self._deepstack:
                levels.append(_merge(hidden, self._deepstack[layer]))
        return torch.stack([_merge(hidden, self._merger), *levels], dim=1)

    def _positions(self, height: int, width: int) -> "_Positions":
        key = height, width
        positions = self._known_positions.get(key)
        if positions is None:
            positions = self._make_positions(height, width)
            self._known_positions.put(key, positions)
        return positions

    def _make_positions(self, height: int, width: int) -> "_Positions":
        rows, columns = _merge_order(height, width)
        head_dim = self._position_table.shape[1] // self._num_heads
        steps = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
        inverse = 1.0 / ROPE_THETA**steps
        angles = torch.cat([rows[:, None] * inverse, columns[:, None] * inverse], dim=1)
        on_device = to_device(angles[:, None], self._device)
        embedding = self._interpolated(rows, columns, height, width)
        return _Positions(embedding, on_device.cos(), on_device.sin())

    def _interpolated(
        self, rows: torch.Tensor, columns: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """The square learned table, bilinear with corners aligned, at each patch: (N, hidden)."""
        table = self._position_table
        top, bottom, down = _neighbours(rows, height, self._grid_side)
        left, right, across = _neighbours(columns, width, self._grid_side)
        corners = (
            (top, left, (1 - down) * (1 - across)),
            (top, right, (1 - down) * across),
            (bottom, left, down * (1 - across)),
            (bottom, right, down * across),
        )
        entries = torch.stack([row * self._grid_side + column for row, column, _ in corners])
        shares = torch.stack([share.to(table.dtype) for *_, share in corners]).unsqueeze(-1)
        return (table[to_device(entries, self._device)] * to_device(shares, self._device)).sum(0)


def patchify(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Patches of one visual: (T, H, W, 3) uint8, T 1 or 2, to (H / 16 * W / 16, 3 * 2 * 16 * 16).

    Normalised by mean and deviation 0.5; an image stands for two equal frames; patches follow in
    2 x 2 merge-block order, each as (channel, frame, row, column).
    """
    frames = (pixels.to(torch.float32) - 127.5) / 127.5
    if len(frames) == 1:
        frames = frames.expand(TEMPORAL_PATCH_SIZE, -1, -1, -1)
    rows, columns = frames.shape[1] // FACTOR, frames.shape[2] // FACTOR
    blocks = frames.reshape(
        TEMPORAL_PATCH_SIZE, rows, MERGE_SIZE, PATCH_SIZE, columns, MERGE_SIZE, PATCH_SIZE, 3
    )
    patches = blocks.permute(1, 4, 2, 5, 7, 0, 3, 6)
    return patches.reshape(rows * columns * MERGE_SIZE**2, -1).to(dtype)


class _Positions(NamedTuple):
    """Position embeddings (N, hidden) and rope's cos, sin (N, 1, head_dim / 2) of one grid."""

    embedding: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self)


def _project(
    hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weights: BlockWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values (N, heads, D)."""
    normed = _layer_norm(hidden, weights.norm1)
    qkv = linear(normed, *weights.qkv).view(len(hidden), 3, weights.num_heads, -1)
    query, key, value = qkv.unbind(1)
    return rotate(query, cos, sin), rotate(key, cos, sin), value


def _finish(hidden: torch.Tensor, attended: torch.Tensor, weights: BlockWeights) -> torch.Tensor:
    """The block behind its attention: projection and MLP, each added to the states."""
    hidden = linear(attended.flatten(1), *weights.proj, plus=hidden)
    normed = _layer_norm(hidden, weights.norm2)
    states = linear(normed, *weights.up, activation="gelu_tanh")
    return linear(states, *weights.down, plus=hidden)


def _merge(hidden: torch.Tensor, weights: MergerWeights) -> torch.Tensor:
    """(N, hidden) patches to (N / 4, out) tokens."""
    if weights.is_norm_after_joining:
        states = _layer_norm(hidden.view(-1, MERGE_SIZE**2 * hidden.shape[1]), weights.norm)
    else:
        states = _layer_norm(hidden, weights.norm).view(-1, MERGE_SIZE**2 * hidden.shape[1])
    return linear(linear(states, *weights.up, activation="gelu"), *weights.down)


def _layer_norm(states: torch.Tensor, norm: Norm) -> torch.Tensor:
    return functional.layer_norm(states, norm.weight.shape, *norm, eps=LAYER_NORM_EPSILON)


Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries, keys and values (N, heads, D) to (N, heads, D), each visual apart."""


def _by_size(lengths: Sequence[int]) -> Attention:
    """Neighbours of one size as one batch."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        start = 0
        for length, run in groupby(lengths):
            end = start + length * len(list(run))
            q, k, v = (
                part[start:end].unflatten(0, (-1, length)).transpose(1, 2)
                for part in (query, key, value)
            )
            attended = functional.scaled_dot_product_attention(q, k, v)
            output[start:end] = attended.transpose(1, 2).flatten(0, 1)
            start = end
        return output

    return attend


def _varlen(lengths: Sequence[int], device: torch.device, kernel: VarlenKernel) -> Attention:
    """All visuals in one launch."""
    cu_seqlens = cumulative(lengths, device)
    longest = max(lengths)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return kernel(query, key, value, cu_seqlens, cu_seqlens, longest, longest, False)[0]

    return attend


class _Taker(NamedTuple):
    """Takes the tensors of one module, and brings its matrices into their form."""

    weights: Weights
    module: str
    prepare: Prepare

    def norm(self, name: str) -> Norm:
        prefix = f"{self.module}.{name}"
        return Norm(self.weights.pop(f"{prefix}.weight"), self.weights.pop(f"{prefix}.bias"))

    def affine(self, name: str) -> Affine:
        weight, bias = self.norm(name)
        return Affine(self.prepare(weight), bias)

    def interleaved_qkv(self, name: str, num_heads: int) -> Affine:
        weight, bias = self.norm(name)
        value = 2 * len(bias) // 3
        head_dim = value // 2 // num_heads
        weight = torch.cat((interleaved(weight[:value], head_dim), weight[value:]))
        bias = torch.cat((interleaved(bias[:value], head_dim), bias[value:]))
        return Affine(self.prepare(weight), bias)


def _block_weights(take: _Taker, num_heads: int) -> BlockWeights:
    return BlockWeights(
        norm1=take.norm("norm1"),
        qkv=take.interleaved_qkv("attn.qkv", num_heads),
        proj=take.affine("attn.proj"),
        norm2=take.norm("norm2"),
        up=take.affine("mlp.linear_fc1"),
        down=take.affine("mlp.linear_fc2"),
        num_heads=num_heads,
    )


def _merger_weights(take: _Taker, is_norm_after_joining: bool) -> MergerWeights:
    return MergerWeights(
        norm=take.norm("norm"),
        up=take.affine("linear_fc1"),
        down=take.affine("linear_fc2"),
        is_norm_after_joining=is_norm_after_joining,
    )


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
