"""Attention over a packed row: parts by block, merged by their log-sum-exp.

softmax over a union of key sets equals the parts' outputs weighted by exp(lse - total lse), so a
suffix may attend to each ancestor and to itself separately, exactly. float32 accumulation.
A variable-length kernel has short ancestors copied before every block's own keys instead.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from shardrank.actors.model.device import to_device
from shardrank.actors.packing import AttentionBlock, AttentionPlan

logger = logging.getLogger(__name__)

VarlenKernel = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""A function such as flash_varlen below."""

Merge = Callable[..., tuple[torch.Tensor, Any]]
"""A function such as merge_rows below, perhaps compiled."""

_TILE = 128
"""Query rows of one of flash attention's thread blocks, of which it starts as many for every
sequence as the longest one needs."""
_EMPTY_TILES = 4
"""Sequences go by classes of length where it would start so many times the tiles that they need.
Not timed on a device."""


@dataclass(frozen=True, slots=True)
class _Launch:
    """Sequences end to end for one call of the kernel."""

    queries: slice
    keys: slice
    cu_seqlens_q: torch.Tensor  # (B + 1,) int32
    cu_seqlens_k: torch.Tensor  # (B + 1,) int32
    max_seqlen_q: int
    max_seqlen_k: int
    is_causal: bool


@dataclass(frozen=True, slots=True)
class _VarlenLevel:
    """One level for the variable-length kernel: rows gathered, then one launch or several."""

    query_rows: torch.Tensor | None  # (Q,) int64, None where all rows in order
    key_rows: torch.Tensor | None  # (K,)
    launches: tuple[_Launch, ...]
    places: torch.Tensor | None
    """(num_queries,) int64: where among the level's rows each query's is, -1 for those without;
    None where all rows in order."""


class PackedAttention:
    """An attention plan on a device, used by every layer that shares it.

    kernel: a variable-length attention that also gives the log-sum-exp; None: block by block.
    """

    def __init__(
        self,
        plan: AttentionPlan,
        device: torch.device,
        kernel: VarlenKernel | None = None,
        merging: Merge | None = None,
    ) -> None:
        self._plan = plan
        self._kernel = kernel
        self._merging = merging or merge_rows
        self._varlen = [_varlen_level(level, plan, device) for level in plan.levels if kernel]

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(Q, heads, D) queries, (T, kv_heads, D) keys and values to (Q, heads, D)."""
        if self._kernel is not None:
            return _attend_varlen(self._varlen, query, key, value, self._kernel, self._merging)
        return _attend_blocks(self._plan, query, key, value)


def kernel_for(device: torch.device, dtype: torch.dtype) -> VarlenKernel | None:
    """Flash attention on CUDA in 16 bits; elsewhere block by block."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    _activate_flash_attention_3(device)
    return flash_varlen


@cache
def _activate_flash_attention_3(device: torch.device) -> None:
    """Where its package is installed, on Hopper: in place of torch's own, in this process."""
    if find_spec("flash_attn_interface") is None:
        return
    if torch.cuda.get_device_capability(device) != (9, 0):
        return
    from torch.nn.attention import activate_flash_attention_impl

    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError) as error:  # one that was built for another torch
        logger.warning("FlashAttention 3 is installed and cannot be used: %s", error)


def _attend_blocks(
    plan: AttentionPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Block after block; the first level covers every query, the others are merged into it."""
    own, *ancestors = plan.levels
    assert not any(block.before for block in own), "a plan for a variable-length kernel"
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


def merge_rows(
    output: torch.Tensor,
    lse: torch.Tensor,
    part: torch.Tensor,
    part_lse: torch.Tensor,
    places: torch.Tensor | None,
    is_last: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Merge a part that has only some of the queries' rows: in float32, or as the last in the
    part's dtype and without a log-sum-exp.

    places: (Q,), the part's row for each query, -1 for those without; None where all in order.
    """
    if places is not None:
        rows, without = places.clamp(min=0), (places < 0).unsqueeze(-1)
        part, part_lse = part.index_select(0, rows), part_lse.index_select(0, rows)
        part_lse = part_lse.masked_fill(without, -torch.inf)
    merged, total = merge(output.float(), lse, part, part_lse)
    return (merged.to(part.dtype), None) if is_last else (merged, total)


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
    """Attention by its formula: (heads, q, D), (kv_heads, k, D) to (q, heads, D) and (q, heads).

    is_causal: the last query sees all keys, and each one before it one key less. For devices and
    dtypes without a kernel that also gives the log-sum-exp.
    """
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = q @ k.transpose(1, 2)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if is_causal:
        first = 1 + k.shape[1] - q.shape[1]
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(first)
        scores = scores.masked_fill(future, -torch.inf)
    lse = scores.logsumexp(-1)
    part = (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v
    return part.transpose(0, 1), lse.transpose(0, 1)


def _varlen_level(
    level: Sequence[AttentionBlock], plan: AttentionPlan, device: torch.device
) -> _VarlenLevel:
    classes = _by_length(level)
    blocks = [block for each in classes for block in each]
    queries = _joined([(block.query_start, block.query_end) for block in blocks])
    keys = _joined([span for block in blocks for span in block.keys])
    covers_queries = np.array_equal(queries, np.arange(plan.num_queries))
    covers_keys = np.array_equal(keys, np.arange(len(keys)))
    return _VarlenLevel(
        query_rows=None if covers_queries else to_device(queries, device),
        key_rows=None if covers_keys else to_device(keys, device),
        launches=_launches(classes, device),
        places=None if covers_queries else to_device(_places(queries, plan.num_queries), device),
    )


def _by_length(level: Sequence[AttentionBlock]) -> list[list[AttentionBlock]]:
    """The blocks as they are, or in classes of number of tiles, in which the most is at most four
    times the least.
    """
    tiles = [-(-block.num_queries // _TILE) for block in level]
    if max(tiles) * len(level) <= _EMPTY_TILES * sum(tiles):
        return [list(level)]
    classes: dict[int, list[AttentionBlock]] = {}
    for block, num in zip(level, tiles, strict=True):
        classes.setdefault((num - 1).bit_length() // 2, []).append(block)
    return [classes[name] for name in sorted(classes)]


def _launches(
    classes: Sequence[Sequence[AttentionBlock]], device: torch.device
) -> tuple[_Launch, ...]:
    query_lengths = [[block.num_queries for block in blocks] for blocks in classes]
    key_lengths = [[block.num_keys for block in blocks] for blocks in classes]
    return tuple(
        _Launch(
            queries=query_rows,
            keys=key_rows,
            cu_seqlens_q=cumulative(of_queries, device),
            cu_seqlens_k=cumulative(of_keys, device),
            max_seqlen_q=max(of_queries),
            max_seqlen_k=max(of_keys),
            is_causal=blocks[0].is_causal,
        )
        for blocks, of_queries, of_keys, query_rows, key_rows in zip(
            classes,
            query_lengths,
            key_lengths,
            _slices(query_lengths),
            _slices(key_lengths),
            strict=True,
        )
    )


def _slices(lengths: Sequence[Sequence[int]]) -> list[slice]:
    ends = accumulate(map(sum, lengths), initial=0)
    return [slice(start, end) for start, end in pairwise(ends)]


def _joined(spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """All rows of the ranges, one range after the other."""
    starts, ends = np.array(spans, dtype=np.int64).T
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def _places(rows: np.ndarray, num_queries: int) -> np.ndarray:
    places = np.full(num_queries, -1)
    places[rows] = np.arange(len(rows))
    return places


def cumulative(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """cu_seqlens: (B + 1,) int32."""
    return to_device(np.cumsum([0, *lengths]).astype(np.int32), device)


def _attend_varlen(
    levels: Sequence[_VarlenLevel],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel: VarlenKernel,
    merging: Merge,
) -> torch.Tensor:
    """The same by a variable-length kernel; between two merges the output stays in float32."""
    own, *ancestors = levels
    output, lse = _varlen(own, query, key, value, kernel)
    if own.places is not None:
        output, lse = output[own.places], lse[own.places]
    for level in ancestors:
        part, part_lse = _varlen(level, query, key, value, kernel)
        is_last = level is ancestors[-1]
        output, lse = merging(output, lse, part, part_lse, level.places, is_last)
    return output


def _varlen(
    level: _VarlenLevel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel: VarlenKernel,
) -> tuple[torch.Tensor, torch.Tensor]:
    if level.query_rows is not None:
        query = query.index_select(0, level.query_rows)
    if level.key_rows is not None:
        key, value = (states.index_select(0, level.key_rows) for states in (key, value))
    parts = [
        kernel(
            query[launch.queries],
            key[launch.keys],
            value[launch.keys],
            launch.cu_seqlens_q,
            launch.cu_seqlens_k,
            launch.max_seqlen_q,
            launch.max_seqlen_k,
            launch.is_causal,
        )
        for launch in level.launches
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([output for output, _ in parts]), torch.cat([lse for _, lse in parts])


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
    return output, lse.transpose(0, 1)


@cache
def _varlen_has_gqa_switch() -> bool:
    """torch 2.11 groups heads by their numbers alone; later ones want to be told."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
