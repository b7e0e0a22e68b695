"""The language model on a packed batch, to the hidden states of the last tokens, no further.

The checkpoint's weights, layer by layer; no padding, no logits. In the last layer only the last
tokens get queries, an MLP and a norm. Source: transformers' Qwen3VLTextModel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from shardrank.actors.model.architecture import EMBEDDING, TextConfig
from shardrank.actors.model.attention import PackedAttention, kernel_for, merge_rows
from shardrank.actors.model.device import maybe_compiled, to_device
from shardrank.actors.model.linear import (
    Fp8Rows,
    Prepare,
    Weight,
    Weights,
    linear,
    preparation,
    quantize_rows,
    ready,
)
from shardrank.actors.model.rope import frequencies, interleaved, rotate
from shardrank.actors.packing import PackedBatch, attention_plan, last_token_plan

KeyValue = tuple[torch.Tensor, torch.Tensor]


class LayerWeights(NamedTuple):
    """Tensors and numbers alone, so that one compiled graph serves every layer."""

    input_norm: torch.Tensor
    query: Weight
    key: Weight
    value: Weight
    query_norm: torch.Tensor  # (D,)
    key_norm: torch.Tensor  # (D,)
    output: Weight
    post_norm: torch.Tensor
    gate: Weight
    up: Weight
    down: Weight
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Rope:
    cos: torch.Tensor  # (T, 1, D / 2) float32
    sin: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "_Rope":
        return _Rope(self.cos[rows], self.sin[rows])


class Decoder:
    """Takes the tensors `language_model.*` out of a checkpoint's weights.

    is_compiled: the parts of a layer before and after attention are compiled, for any number of
    tokens, on first use.
    """

    def __init__(
        self, weights: Weights, text: TextConfig, is_fp8: bool = False, is_compiled: bool = False
    ) -> None:
        self._embedding = weights.pop(EMBEDDING)
        self._norm = weights.pop("language_model.norm.weight")
        self._epsilon = text.rms_norm_eps
        device, dtype = self._embedding.device, self._embedding.dtype
        prepare = quantize_rows if is_fp8 else preparation(device, dtype, is_compiled)
        self._layers = [
            _layer_weights(weights, f"language_model.layers.{index}", text, prepare)
            for index in range(text.num_hidden_layers)
        ]
        inverse, self._rope_scale, sections = frequencies(text)
        self._inverse_frequencies = to_device(inverse, device)
        self._axes = to_device(_axis_of_frequency(len(inverse), sections), device)
        self._attention_inputs = maybe_compiled(_attention_inputs, is_compiled)
        self._keys_values = maybe_compiled(_keys_values, is_compiled)
        self._queries = maybe_compiled(_queries, is_compiled)
        self._finish = maybe_compiled(_finish, is_compiled)
        self._merge = maybe_compiled(merge_rows, is_compiled)

    @property
    def width(self) -> int:
        return len(self._norm)

    def last_hidden(
        self,
        batch: PackedBatch,
        features: torch.Tensor | None,
        feature_rows: torch.Tensor | None,
        cached: Sequence[KeyValue] = (),
        kept_rows: np.ndarray | None = None,
    ) -> tuple[torch.Tensor, tuple[KeyValue, ...]]:
        """(P, hidden), the normed state of each pair's last token, and what was kept.

        features: (N, levels, hidden) of visuals, feature_rows: (V,) which of them each of the
            batch's visual tokens has; None where there are none.
        cached: each layer's keys and values of the batch's num_cached first tokens, or more.
        kept_rows: the key rows whose keys and values are returned, by layer.
        """
        device, dtype = self._embedding.device, self._embedding.dtype
        hidden = functional.embedding(to_device(batch.input_ids, device), self._embedding)
        visual_rows = to_device(batch.visual_rows, device)
        if features is not None:
            hidden[visual_rows] = features[feature_rows, 0]
        rope = self._rope(to_device(batch.position_ids.T, device))
        kernel = kernel_for(device, dtype)
        gathers = kernel is not None
        plan = attention_plan(batch, gathers)
        attention = PackedAttention(plan, device, kernel, self._merge)
        rows, pair_row = np.unique(batch.last_rows, return_inverse=True)
        last_plan = last_token_plan(batch, rows, gathers)
        last_attention = PackedAttention(last_plan, device, kernel, self._merge)
        last, pair_rows = to_device(rows, device), to_device(pair_row, device)
        kept_on_device = None if kept_rows is None else to_device(kept_rows, device)
        kept: list[KeyValue] = []
        for index, weights in enumerate(self._layers):
            before = _first(cached[index], batch.num_cached) if batch.num_cached else (None, None)
            arguments = hidden, rope.cos, rope.sin, *before, weights
            if index < len(self._layers) - 1:
                query, key, value = self._attention_inputs(*arguments)
            else:
                key, value = self._keys_values(*arguments)
                hidden, rope, attention = hidden[last], rope[last], last_attention
                query = self._queries(hidden, rope.cos, rope.sin, weights)
            if kept_on_device is not None:
                kept.append((key[kept_on_device], value[kept_on_device]))
            hidden = self._finish(hidden, attention(query, key, value), weights)
            if features is not None and index + 1 < features.shape[1]:
                hidden[visual_rows] += features[feature_rows, index + 1]
        states = _rms_norm(hidden, self._norm, self._epsilon)
        return states[pair_rows], tuple(kept)

    def _rope(self, positions: torch.Tensor) -> _Rope:
        """Interleaved MRoPE: every frequency turns with one of the three (T, 3) positions."""
        angles = positions.float().index_select(1, self._axes) * self._inverse_frequencies
        cos, sin = angles.cos() * self._rope_scale, angles.sin() * self._rope_scale
        return _Rope(cos[:, None], sin[:, None])


def _first(states: KeyValue, num_rows: int) -> KeyValue:
    return states[0][:num_rows], states[1][:num_rows]


def _attention_inputs(
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_before: torch.Tensor | None,
    value_before: torch.Tensor | None,
    weights: LayerWeights,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (T, heads, D) of all tokens, keys and values (B + T, kv_heads, D) of those before
    them, if there are any, and of them."""
    normed = _normed(hidden, weights)
    key, value = _joined_keys_values(normed, cos, sin, key_before, value_before, weights)
    return _rotated_queries(normed, cos, sin, weights), key, value


def _keys_values(
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_before: torch.Tensor | None,
    value_before: torch.Tensor | None,
    weights: LayerWeights,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without queries."""
    normed = _normed(hidden, weights)
    return _joined_keys_values(normed, cos, sin, key_before, value_before, weights)


def _queries(
    hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weights: LayerWeights
) -> torch.Tensor:
    """The queries alone."""
    return _rotated_queries(_normed(hidden, weights), cos, sin, weights)


def _normed(hidden: torch.Tensor, weights: LayerWeights) -> torch.Tensor | Fp8Rows:
    return ready(_rms_norm(hidden, weights.input_norm, weights.epsilon), weights.query)


def _joined_keys_values(
    normed: torch.Tensor | Fp8Rows,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_before: torch.Tensor | None,
    value_before: torch.Tensor | None,
    weights: LayerWeights,
) -> tuple[torch.Tensor, torch.Tensor]:
    key = _heads(linear(normed, weights.key), weights)
    key = rotate(_rms_norm(key, weights.key_norm, weights.epsilon), cos, sin)
    value = _heads(linear(normed, weights.value), weights)
    if key_before is None or value_before is None:
        return key, value
    return torch.cat((key_before, key)), torch.cat((value_before, value))


def _rotated_queries(
    normed: torch.Tensor | Fp8Rows, cos: torch.Tensor, sin: torch.Tensor, weights: LayerWeights
) -> torch.Tensor:
    query = _heads(linear(normed, weights.query), weights)
    return rotate(_rms_norm(query, weights.query_norm, weights.epsilon), cos, sin)


def _finish(hidden: torch.Tensor, attended: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """The layer behind its attention: output projection and MLP, each added to the states."""
    hidden = linear(attended.flatten(1), weights.output, plus=hidden)
    normed = ready(_rms_norm(hidden, weights.post_norm, weights.epsilon), weights.gate)
    gate = linear(normed, weights.gate, activation="silu")
    return linear(linear(normed, weights.up, times=gate), weights.down, plus=hidden)


def _heads(states: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    return states.view(len(states), -1, len(weights.query_norm))


def _rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return functional.rms_norm(states, weight.shape, weight, epsilon)


def _layer_weights(
    weights: Weights, layer: str, text: TextConfig, prepare: Prepare
) -> LayerWeights:
    def taken(name: str) -> torch.Tensor:
        return weights.pop(f"{layer}.{name}.weight")

    return LayerWeights(
        input_norm=taken("input_layernorm"),
        query=prepare(interleaved(taken("self_attn.q_proj"), text.head_dim)),
        key=prepare(interleaved(taken("self_attn.k_proj"), text.head_dim)),
        value=prepare(taken("self_attn.v_proj")),
        query_norm=interleaved(taken("self_attn.q_norm"), text.head_dim),
        key_norm=interleaved(taken("self_attn.k_norm"), text.head_dim),
        output=prepare(taken("self_attn.o_proj")),
        post_norm=taken("post_attention_layernorm"),
        gate=prepare(taken("mlp.gate_proj")),
        up=prepare(taken("mlp.up_proj")),
        down=prepare(taken("mlp.down_proj")),
        epsilon=text.rms_norm_eps,
    )


def _axis_of_frequency(num_frequencies: int, mrope_section: list[int]) -> torch.Tensor:
    """Which position (0 time, 1 height, 2 width) each frequency uses: T H W T H W ... T T."""
    axes = torch.zeros(num_frequencies, dtype=torch.long)
    for axis in (1, 2):
        axes[axis : mrope_section[axis] * 3 : 3] = axis
    return axes
