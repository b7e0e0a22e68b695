"""Cases that a variable-length attention kernel must get right, against the formula in float64.

Causal is bottom-right: the last query sees the last key, also where there are more keys.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from typing import Any

import torch

from shardrank.actors.model.attention import attend_plainly, cumulative

# Heads, heads of keys and values, and their size: 8B, 2B, both vision towers, a small one.
HEADS = ((32, 8, 128), (16, 8, 128), (16, 16, 64), (16, 16, 72), (4, 2, 32))
# Relative of the output in bfloat16, absolute of the log-sum-exp, which is float32.
MAX_OUTPUT_ERROR, MAX_LSE_ERROR = 6e-3, 2e-3


def cases(heads: int) -> dict[str, tuple[Sequence[int], Sequence[int], bool]]:
    """Lengths of queries and of keys, and whether causal."""
    own = [1, 7, 100, 129, 32]
    return {
        "own tokens": (own, own, True),
        "an ancestor": ([500, 32], [60, 1_800], False),
        "own tokens behind an ancestor": ([40, 1, 129], [100, 61, 1_929], True),
        "last tokens": ([1] * 40, [100 + index for index in range(40)], False),
        "a last token of a long document": ([1, 1], [10_000, 9], False),
        "as many tokens as heads": ([heads], [heads], False),
    }


def errors(
    kernel: Callable[..., Any], device: torch.device, all_heads: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[str, float, float]]:
    """The cases: each one's name, the output's relative error and the log-sum-exp's largest."""
    for heads, kv_heads, size in all_heads:
        for name, (queries, keys, is_causal) in cases(heads).items():
            torch.manual_seed(0)
            query, key, values = (
                torch.randn(shape, device=device).bfloat16()
                for shape in (
                    (sum(queries), heads, size),
                    (sum(keys), kv_heads, size),
                    (sum(keys), 3, kv_heads, size),
                )
            )
            value = values[:, 2]  # strided, as a fused layer's is
            cu_seqlens = (cumulative(lengths, device) for lengths in (queries, keys))
            layout: Any = (*cu_seqlens, max(queries), max(keys), is_causal)
            output, lse = kernel(query, key, value, *layout)
            exact, exact_lse = by_formula(query.double(), key.double(), value.double(), *layout)
            assert lse.shape == exact_lse.shape, (name, lse.shape)
            error = float((output - exact).norm() / exact.norm())
            largest = float((lse - exact_lse).abs().max())
            yield f"{heads}/{kv_heads} x {size}: {name}", error, largest


def by_formula(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel gives, sequence by sequence, in the inputs' dtype or at least float32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    lengths_q, lengths_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    q, k, v = (
        states.to(wide).transpose(0, 1).split(lengths, 1)
        for states, lengths in ((query, lengths_q), (key, lengths_k), (value, lengths_k))
    )
    sequences = zip(q, k, v, [is_causal] * len(q), strict=True)
    outputs, sums = zip(*starmap(attend_plainly, sequences), strict=True)
    return torch.cat(outputs).to(query.dtype), torch.cat(sums)
