"""Cases that a variable-length attention kernel must get right, against the formula in float64.

Causal is bottom-right: the last query sees the last key, also where there are more keys.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, starmap
from typing import Any

import torch

from shardrank.actors.model.attention import attend_plainly

HEADS = ((32, 8, 128), (16, 8, 128), (16, 16, 64), (16, 16, 72), (4, 2, 32))
"""Heads, heads of keys and values, and their size: 8B, 2B, both vision towers, a small one."""
MAX_OUTPUT_ERROR, MAX_LSE_ERROR = 6e-3, 2e-3
"""Relative of the output in bfloat16, absolute of the log-sum-exp, which is float32."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    queries: Sequence[int]  # lengths
    keys: Sequence[int]
    is_causal: bool


def cases(heads: int) -> tuple[Case, ...]:
    own = [1, 7, 100, 129, 32]
    return (
        Case("own tokens", own, own, True),
        Case("an ancestor", [500, 32], [60, 1_800], False),
        Case("own tokens behind an ancestor", [40, 1, 129], [100, 61, 1_929], True),
        Case("last tokens", [1] * 40, [100 + index for index in range(40)], False),
        Case("a last token of a long document", [1, 1], [10_000, 9], False),
        Case("as many tokens as heads", [heads], [heads], False),
    )


def errors(
    kernel: Callable[..., Any], device: torch.device, all_heads: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[str, float, float]]:
    """Of each case its name, the output's relative error and the log-sum-exp's largest."""
    for heads, kv_heads, size in all_heads:
        for case in cases(heads):
            generator = torch.Generator(device).manual_seed(0)

            def drawn(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
                return torch.randn(shape, generator=generator, device=device).bfloat16()

            query = drawn(sum(case.queries), heads, size)
            key = drawn(sum(case.keys), kv_heads, size)
            value = drawn(sum(case.keys), 3, kv_heads, size)[:, 2]  # strided, as a fused layer's is
            layout: tuple[Any, ...] = (
                *(
                    torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
                    for lengths in (case.queries, case.keys)
                ),
                max(case.queries),
                max(case.keys),
                case.is_causal,
            )
            output, lse = kernel(query, key, value, *layout)
            exact, exact_lse = by_formula(query.double(), key.double(), value.double(), *layout)
            assert lse.shape == exact_lse.shape, (case.name, lse.shape)
            error = float((output - exact).norm() / exact.norm())
            name = f"{heads}/{kv_heads} x {size}: {case.name}"
            yield name, error, float((lse - exact_lse).abs().max())


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
