"""The language model on a packed batch, to the hidden states of the last tokens, no further.

transformers' own weights, layer by layer; no padding, no logits. In the last layer only the last
tokens get queries, an MLP and a norm. Source: transformers' Qwen3VLTextModel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from shardrank.actors.model.attention import PackedAttention, kernel_for
from shardrank.actors.model.device import maybe_compiled, to_device
from shardrank.actors.model.linear import Prepare, Weight, linear, preparation, quantize_rows, take
from shardrank.actors.model.rope import interleaved, rotate
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
    """Takes over a loaded Qwen3VLTextModel's weights.

    is_compiled: the parts of a layer before and after attention are compiled, for any number of
    tokens, on first use.
    """

    def __init__(
        self, language_model: Any, is_fp8: bool = False, is_compiled: bool = False
    ) -> None:
        weight = language_model.embed_tokens.weight
        prepare = quantize_rows if is_fp8 else preparation(weight.device, weight.dtype, is_compiled)
        self._embedding = language_model.embed_tokens
        self._norm = language_model.norm
        self._layers = [_layer_weights(layer, prepare) for layer in language_model.layers]
        rotary = language_model.rotary_emb
        self._inverse_frequencies = rotary.inv_freq.float()
        self._rope_scale = float(rotary.attention_scaling)
        self._axes = _axis_of_frequency(len(self._inverse_frequencies), rotary.mrope_section)
        self._keys_values = maybe_compiled(_keys_values, is_compiled)
        self._queries = maybe_compiled(_queries, is_compiled)
        self._finish = maybe_compiled(_finish, is_compiled)

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
        weight = self._embedding.weight
        device, dtype = weight.device, weight.dtype
        hidden = self._embedding(to_device(batch.input_ids, device))
        visual_rows = to_device(batch.visual_rows, device)
        if features is not None:
            hidden[visual_rows] = features[feature_rows, 0]
        rope = self._rope(to_device(batch.position_ids, device))
        kernel = kernel_for(device, dtype)
        attention = PackedAttention(attention_plan(batch), device, kernel)
        rows, pair_row = np.unique(batch.last_rows, return_inverse=True)
        last_attention = PackedAttention(last_token_plan(batch, rows), device, kernel)
        last = to_device(rows, device)
        kept_on_device = None if kept_rows is None else to_device(kept_rows, device)
        kept: list[KeyValue] = []
        for index, weights in enumerate(self._layers):
            normed, key, value = self._keys_values(hidden, rope.cos, rope.sin, weights)
            if batch.num_cached:
                before_key, before_value = cached[index]
                key = torch.cat((before_key[: batch.num_cached], key))
                value = torch.cat((before_value[: batch.num_cached], value))
            if kept_on_device is not None:
                kept.append((key[kept_on_device], value[kept_on_device]))
            if index == len(self._layers) - 1:
                hidden, normed, rope, attention = (
                    hidden[last],
                    normed[last],
                    rope[last],
                    last_attention,
                )
            query = self._queries(normed, rope.cos, rope.sin, weights)
            hidden = self._finish(hidden, attention(query, key, value), weights)
            if features is not None and index + 1 < features.shape[1]:
                hidden[visual_rows] += features[feature_rows, index + 1]
        states = _rms_norm(hidden, self._norm.weight, self._norm.variance_epsilon)
        return states[to_device(pair_row, device)], tuple(kept)

    def _rope(self, position_ids: torch.Tensor) -> _Rope:
        """Interleaved MRoPE: every frequency turns with one of the three positions."""
        axes = self._axes.to(position_ids.device)
        angles = (position_ids.float()[axes].T * self._inverse_frequencies)[:, None]
        return _Rope(angles.cos() * self._rope_scale, angles.sin() * self._rope_scale)


def _keys_values(
    hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weights: LayerWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normed states (T, hidden), and keys and values (T, kv_heads, D) of all tokens."""
    normed = _rms_norm(hidden, weights.input_norm, weights.epsilon)
    key = _heads(linear(normed, weights.key), weights)
    key = rotate(_rms_norm(key, weights.key_norm, weights.epsilon), cos, sin)
    return normed, key, _heads(linear(normed, weights.value), weights)


def _queries(
    normed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, weights: LayerWeights
) -> torch.Tensor:
    query = _heads(linear(normed, weights.query), weights)
    return rotate(_rms_norm(query, weights.query_norm, weights.epsilon), cos, sin)


def _finish(hidden: torch.Tensor, attended: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    """The layer behind its attention: output projection and MLP, each added to the states."""
    hidden = linear(attended.flatten(1), weights.output, plus=hidden)
    normed = _rms_norm(hidden, weights.post_norm, weights.epsilon)
    gate = linear(normed, weights.gate, activation="silu")
    return linear(linear(normed, weights.up, times=gate), weights.down, plus=hidden)


def _heads(states: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    return states.view(len(states), -1, len(weights.query_norm))


def _rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return functional.rms_norm(states, weight.shape, weight, epsilon)


def _layer_weights(layer: Any, prepare: Prepare) -> LayerWeights:
    attn, mlp = layer.self_attn, layer.mlp
    if attn.q_proj.bias is not None:
        raise ValueError("a checkpoint with attention_bias is not a Qwen3-VL-Reranker")
    return LayerWeights(
        input_norm=layer.input_layernorm.weight,
        query=_interleaved(attn.q_proj, attn.head_dim, prepare),
        key=_interleaved(attn.k_proj, attn.head_dim, prepare),
        value=take(attn.v_proj, prepare),
        query_norm=interleaved(attn.q_norm.weight, attn.head_dim),
        key_norm=interleaved(attn.k_norm.weight, attn.head_dim),
        output=take(attn.o_proj, prepare),
        post_norm=layer.post_attention_layernorm.weight,
        gate=take(mlp.gate_proj, prepare),
        up=take(mlp.up_proj, prepare),
        down=take(mlp.down_proj, prepare),
        epsilon=layer.input_layernorm.variance_epsilon,
    )


def _interleaved(projection: Any, head_dim: int, prepare: Prepare) -> Weight:
    projection.weight.data = interleaved(projection.weight, head_dim)
    return take(projection, prepare)


def _axis_of_frequency(num_frequencies: int, mrope_section: list[int]) -> torch.Tensor:
    """Which position (0 time, 1 height, 2 width) each frequency uses: T H W T H W ... T T."""
    axes = torch.zeros(num_frequencies, dtype=torch.long)
    for axis in (1, 2):
        axes[axis : mrope_section[axis] * 3 : 3] = axis
    return axes
