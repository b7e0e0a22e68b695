"""The language model on a packed batch, to the hidden states of the last tokens, no further.

transformers' own weights, layer by layer; no padding, no logits, no cache. In the last layer only
the last tokens get queries, an MLP and a norm. Source: transformers' Qwen3VLTextModel.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from actors.attention import PackedAttention, kernel_for
from actors.packing import PackedBatch, attention_plan, last_token_plan
from actors.vision import rotate


@dataclass(frozen=True, slots=True)
class _Rope:
    cos: torch.Tensor  # (T, 1, D) float32
    sin: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "_Rope":
        return _Rope(self.cos[rows], self.sin[rows])


class Decoder:
    """Wraps a loaded Qwen3VLTextModel; the weights stay its own."""

    def __init__(self, language_model: Any) -> None:
        self._model = language_model
        rotary = language_model.rotary_emb
        self._inverse_frequencies = rotary.inv_freq.float()
        self._rope_scale = float(rotary.attention_scaling)
        self._axes = _axis_of_frequency(len(self._inverse_frequencies), rotary.mrope_section)
        self._head_dim = language_model.layers[0].self_attn.head_dim

    def last_hidden(self, batch: PackedBatch, features: torch.Tensor | None) -> torch.Tensor:
        """(P, hidden): the normed state of each pair's last token.

        features: (N, levels, hidden) of the batch's visuals end to end, None where it has none.
        """
        embedding = self._model.embed_tokens
        device, dtype = embedding.weight.device, embedding.weight.dtype
        hidden = embedding(torch.from_numpy(batch.input_ids).to(device))
        visual_rows = torch.from_numpy(batch.visual_rows).to(device)
        if features is not None:
            features = features[torch.from_numpy(batch.visual_tokens).to(device)]
            hidden[visual_rows] = features[:, 0]
        rope = self._rope(torch.from_numpy(batch.position_ids).to(device))
        kernel = kernel_for(device, dtype)
        attention = PackedAttention(attention_plan(batch), device, kernel)
        *layers, last_layer = self._model.layers
        for index, layer in enumerate(layers):
            hidden = self._layer(layer, hidden, rope, attention)
            if features is not None and index + 1 < features.shape[1]:
                hidden[visual_rows] += features[:, index + 1]
        rows, pair_row = np.unique(batch.last_rows, return_inverse=True)
        last_attention = PackedAttention(last_token_plan(batch, rows), device, kernel)
        last = torch.from_numpy(rows).to(device)
        hidden = self._layer(last_layer, hidden, rope, last_attention, last)
        return _norm(self._model.norm, hidden)[torch.from_numpy(pair_row).to(device)]

    def _layer(
        self,
        layer: Any,
        hidden: torch.Tensor,
        rope: _Rope,
        attention: PackedAttention,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One decoder layer on all tokens, or with `rows` on those alone (all tokens as keys)."""
        attn = layer.self_attn
        normed = _norm(layer.input_layernorm, hidden)
        key = rotate(_norm(attn.k_norm, self._heads(attn.k_proj(normed))), rope.cos, rope.sin)
        value = self._heads(attn.v_proj(normed))
        if rows is not None:
            hidden, normed, rope = hidden[rows], normed[rows], rope[rows]
        query = rotate(_norm(attn.q_norm, self._heads(attn.q_proj(normed))), rope.cos, rope.sin)
        hidden = hidden + attn.o_proj(attention(query, key, value).flatten(1))
        normed = _norm(layer.post_attention_layernorm, hidden)
        gated = functional.silu(layer.mlp.gate_proj(normed)).mul_(layer.mlp.up_proj(normed))
        return hidden + layer.mlp.down_proj(gated)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(len(states), -1, self._head_dim)

    def _rope(self, position_ids: torch.Tensor) -> _Rope:
        """Interleaved MRoPE: every frequency turns with one of the three positions."""
        axes = self._axes.to(position_ids.device)
        angles = position_ids.float()[axes].T * self._inverse_frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return _Rope(angles.cos() * self._rope_scale, angles.sin() * self._rope_scale)


def _norm(norm: Any, states: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _axis_of_frequency(num_frequencies: int, mrope_section: list[int]) -> torch.Tensor:
    """Which position (0 time, 1 height, 2 width) each frequency uses: T H W T H W ... T T."""
    axes = torch.zeros(num_frequencies, dtype=torch.long)
    for axis in (1, 2):
        axes[axis : mrope_section[axis] * 3 : 3] = axis
    return axes
