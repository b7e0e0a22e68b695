"""Attention over a packed row: parts by block, merged by their log-sum-exp.

softmax over a union of key sets equals the parts' outputs weighted by exp(lse - total lse), so a
suffix may attend to each ancestor and to itself separately, exactly. float32 accumulation.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from shardrank.actors.model.device import to_device
from shardrank.actors.packing import AttentionBlock, AttentionPlan

VarlenKernel = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""As flash_varlen below."""


@dataclass(frozen=True, slots=True)
class _VarlenLevel:
    """One level for the variable-length kernel: rows gathered, then sequences end to end."""

    query_rows: torch.Tensor | None  # (Q,) int64, None where all rows in order
    key_rows: torch.Tensor | None  # (K,)
    cu_seqlens_q: torch.Tensor  # (B + 1,) int32
    cu_seqlens_k: torch.Tensor  # (B + 1,) int32
    max_seqlen_q: int
    max_seqlen_k: int
    is_causal: bool


class PackedAttention:
    """An attention plan on a device, used by every layer that shares it.

    kernel: a variable-length attention that also gives the log-sum-exp; None: block by block.
    """

    def __init__(
        self, plan: AttentionPlan, device: torch.device, kernel: VarlenKernel | None = None
    ) -> None:
        self._plan = plan
        self._kernel = kernel
        self._varlen = [_varlen_level(level, plan, device) for level in plan.levels if kernel]

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(Q, heads, D) queries, (T, kv_heads, D) keys and values to (Q, heads, D)."""
        if self._kernel is not None:
            return _attend_varlen(self._varlen, query, key, value, self._kernel)
        return _attend_blocks(self._plan, query, key, value)


def kernel_for(device: torch.device, dtype: torch.dtype) -> VarlenKernel | None:
    """Flash attention on CUDA in 16 bits; elsewhere block by block."""
    is_flash = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    return flash_varlen if is_flash else None


def _attend_blocks(
    plan: AttentionPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Block after block; the first level covers every query, the others are merged into it."""
    own, *ancestors = plan.levels
    output = torch.empty_like(query)
    lse = query.new_empty(query.shape[:2], dtype=torch.float32)
    for block in own:
        rows = slice(block.query_start, block.query_end)
        output[rows], lse[rows] = _attend(block, query, key, value)
    for level in ancestors:
        for block in level:
            rows = slice(block.query_start, block.query_end)
            part, part_lse = _attend(block, query, key, value)
            output[rows], lse[rows] = merge(output[rows], lse[rows], part, part_lse)
    return output


def merge(
    output: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two disjoint key sets from the attention over each.

    Outputs are (Q, heads, D), log-sum-exps (Q, heads) in float32.
    """
    share = torch.sigmoid(part_lse - lse).unsqueeze(-1)  # of the second part
    merged = torch.lerp(output.float(), part.float(), share)
    return merged.to(output.dtype), torch.logaddexp(lse, part_lse)


def _attend(
    block: AttentionBlock, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (q, heads, D) and log-sum-exp (q, heads) of one block."""
    keys = slice(block.key_start, block.key_end)
    q = query[block.query_start : block.query_end].transpose(0, 1)
    k, v = key[keys].transpose(0, 1), value[keys].transpose(0, 1)
    if _has_cpu_kernel() and q.device.type == "cpu":
        part, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None], k[None], v[None], is_causal=block.is_causal
        )
        return part[0].transpose(0, 1), lse[0].transpose(0, 1)
    return attend_plainly(q, k, v, block.is_causal)


@cache
def _has_cpu_kernel() -> bool:
    return hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def attend_plainly(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the formula has it: (heads, q, D), (kv_heads, k, D) to (q, heads, D) and (q, heads).

    For devices and dtypes without a kernel that also gives the log-sum-exp.
    """
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
    if is_causal:
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    lse = scores.logsumexp(-1)
    part = (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v
    return part.transpose(0, 1), lse.transpose(0, 1)


def _varlen_level(
    level: Sequence[AttentionBlock], plan: AttentionPlan, device: torch.device
) -> _VarlenLevel:
    query_lengths = [block.query_end - block.query_start for block in level]
    key_lengths = [block.key_end - block.key_start for block in level]
    queries = np.concatenate([np.arange(b.query_start, b.query_end) for b in level])
    keys = np.concatenate([np.arange(b.key_start, b.key_end) for b in level])
    covers_queries = len(queries) == plan.num_queries and bool((np.diff(queries) == 1).all())
    covers_keys = len(keys) > 0 and bool((keys == np.arange(len(keys))).all())
    return _VarlenLevel(
        query_rows=None if covers_queries else to_device(queries, device),
        key_rows=None if covers_keys else to_device(keys, device),
        cu_seqlens_q=cumulative(query_lengths, device),
        cu_seqlens_k=cumulative(key_lengths, device),
        max_seqlen_q=max(query_lengths),
        max_seqlen_k=max(key_lengths),
        is_causal=level[0].is_causal,
    )


def cumulative(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """cu_seqlens: (B + 1,) int32."""
    return to_device(np.cumsum([0, *lengths]).astype(np.int32), device)


def _attend_varlen(
    levels: Sequence[_VarlenLevel],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel: VarlenKernel,
) -> torch.Tensor:
    """The same by a variable-length kernel, one launch a level."""
    output, lse = _varlen(levels[0], query, key, value, kernel)
    for level in levels[1:]:
        part, part_lse = _varlen(level, query, key, value, kernel)
        if level.query_rows is None:
            output, lse = merge(output, lse, part, part_lse)
            continue
        rows = level.query_rows
        output[rows], lse[rows] = merge(output[rows], lse[rows], part, part_lse)
    return output


def _varlen(
    level: _VarlenLevel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel: VarlenKernel,
) -> tuple[torch.Tensor, torch.Tensor]:
    if level.query_rows is not None:
        query = query[level.query_rows]
    if level.key_rows is not None:
        key, value = key[level.key_rows], value[level.key_rows]
    return kernel(
        query,
        key,
        value,
        level.cu_seqlens_q,
        level.cu_seqlens_k,
        level.max_seqlen_q,
        level.max_seqlen_k,
        level.is_causal,
    )


def flash_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's flash attention: output (Q, heads, D), log-sum-exp (Q, heads)."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": True} if _varlen_has_gqa_switch() else {}
    output, lse = varlen_attn(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        return_aux=AuxRequest(lse=True),
        window_size=(-1, 0) if is_causal else (-1, -1),
        **grouped,
    )
    assert lse.shape == (query.shape[1], query.shape[0]), lse.shape  # its docstring has it reversed
    return output, lse.transpose(0, 1).contiguous()


@cache
def _varlen_has_gqa_switch() -> bool:
    """torch 2.11 groups heads by their numbers alone; later ones want to be told."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
