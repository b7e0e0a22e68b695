import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.actors.model.attention import PackedAttention, attend_plainly, kernel_for, merge
from shardrank.actors.packing import attention_plan, last_token_plan, pack, sharing_keys
from tests.actors.test_packing import pair_of, prefix_sharing_pairs

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
CPU = torch.device("cpu")


def plain_varlen(query, key, value, cu_q, cu_k, max_q, max_k, is_causal):
    """A slow stand-in with the interface of the CUDA kernel."""
    assert max_q == cu_q.diff().max() and max_k == cu_k.diff().max()
    parts = []
    for index in range(len(cu_q) - 1):
        q = query[cu_q[index] : cu_q[index + 1]].transpose(0, 1)
        k, v = (x[cu_k[index] : cu_k[index + 1]].transpose(0, 1) for x in (key, value))
        parts.append(attend_plainly(q, k, v, is_causal))
    return torch.cat([part for part, _ in parts]), torch.cat([lse for _, lse in parts]).float()


def random_states(num_queries, num_keys):
    torch.manual_seed(0)
    return (
        torch.randn(num_queries, HEADS, HEAD_DIM),
        torch.randn(num_keys, KV_HEADS, HEAD_DIM),
        torch.randn(num_keys, KV_HEADS, HEAD_DIM),
    )


def masked(plan, query, key, value):
    """One dense softmax over exactly the keys that the plan allows."""
    allowed = torch.zeros(len(query), len(key), dtype=torch.bool)
    for level in plan.levels:
        for block in level:
            for row in range(block.query_start, block.query_end):
                causal_end = block.key_start + row - block.query_start + 1
                end = causal_end if block.is_causal else block.key_end
                allowed[row, block.key_start : end] = True
                for start, end in block.before:
                    allowed[row, start:end] = True
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (query, key, value)), attn_mask=allowed, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


def three_level_batch():
    system, queries = list(range(20)), [list(range(100, 130)), list(range(200, 215))]
    pairs = [pair_of(system + q + [n] * (5 + n) + [9]) for q in queries for n in range(300, 304)]
    return pack([*pairs, pair_of(range(400, 440))])


@pytest.mark.parametrize("kernel", [None, plain_varlen], ids=["blocks", "varlen"])
def test_merged_parts_equal_one_masked_softmax(kernel):
    """Levels as they are: with a kernel too, where none of them is short enough to be gathered."""
    batch = three_level_batch()
    plan = attention_plan(batch)
    assert len(plan.levels) == 3
    states = random_states(batch.num_tokens, batch.num_tokens)
    attended = PackedAttention(plan, CPU, kernel)(*states)
    torch.testing.assert_close(attended, masked(plan, *states), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kernel", [None, plain_varlen], ids=["blocks", "varlen"])
def test_last_tokens_attend_as_they_do_among_all(kernel):
    batch = three_level_batch()
    rows = sorted(set(batch.last_rows.tolist()))
    query, key, value = random_states(batch.num_tokens, batch.num_tokens)
    everything = PackedAttention(attention_plan(batch), CPU, kernel)(query, key, value)
    last = PackedAttention(last_token_plan(batch, np.array(rows)), CPU, kernel)
    attended = last(query[rows], key, value)
    torch.testing.assert_close(attended, everything[rows], atol=2e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(prefix_sharing_pairs(), prefix_sharing_pairs(), st.integers(0, 40))
def test_gathered_ancestors_and_merged_ones_equal_one_masked_softmax(pairs, others, num_cached):
    """Brute force in float64, behind a prefix of another batch too; own keys end with the queries,
    which the stand-in has from attend_plainly: flash attention's causal form."""
    batch = pack(pairs, sharing_keys(others[0])[:num_cached])
    rows = np.unique(batch.last_rows)
    states = [
        x.double() for x in random_states(batch.num_tokens, batch.num_cached + batch.num_tokens)
    ]
    expected = masked(attention_plan(batch), *states)
    attended = PackedAttention(attention_plan(batch, True), CPU, plain_varlen)(*states)
    torch.testing.assert_close(attended, expected, atol=1e-6, rtol=0)
    last = PackedAttention(last_token_plan(batch, rows, True), CPU, plain_varlen)
    attended = last(states[0][rows], *states[1:])
    torch.testing.assert_close(attended, expected[rows], atol=1e-6, rtol=0)


def test_a_long_document_does_not_ride_in_the_launch_of_short_ones():
    pairs = [
        pair_of([n] * length) for n, length in enumerate([20, 3_000, 30, 20, 2_500, *[25] * 40])
    ]
    batch = pack(pairs)
    plan = attention_plan(batch, True)
    sizes = []

    def counted(query, key, value, cu_q, cu_k, max_q, *others):
        sizes.append((len(cu_q) - 1, max_q))
        return plain_varlen(query, key, value, cu_q, cu_k, max_q, *others)

    query, key, value = (x[..., :4] for x in random_states(batch.num_tokens, batch.num_tokens))
    attended = PackedAttention(plan, CPU, counted)(query, key, value)
    assert sizes == [(43, 30), (2, 3_000)]
    in_blocks = PackedAttention(attention_plan(batch), CPU)(query, key, value)
    torch.testing.assert_close(attended, in_blocks, atol=2e-6, rtol=0)


def test_merge_is_exact_where_one_part_outweighs_the_other_by_far():
    first, second = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    lse = torch.tensor([[0.0, 200.0], [-200.0, 3.0], [50.0, 50.0]])
    merged, total = merge(first, lse, second, torch.zeros(3, 2))
    weights = torch.softmax(torch.stack([lse, torch.zeros(3, 2)]).double(), 0)[..., None]
    expected = first * weights[0] + second * weights[1]
    torch.testing.assert_close(merged.double(), expected, atol=1e-6, rtol=0)
    assert total.isfinite().all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_formula_and_the_cpu_kernel_agree(is_causal):
    query, key, value = (x.transpose(0, 1) for x in random_states(33, 33))
    part, lse = attend_plainly(query, key, value, is_causal)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    expected, expected_lse = kernel(query[None], key[None], value[None], is_causal=is_causal)
    torch.testing.assert_close(part.transpose(0, 1), expected[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(lse.transpose(0, 1), expected_lse[0], atol=2e-6, rtol=1e-6)


def test_float32_never_goes_through_a_16_bit_kernel():
    assert kernel_for(torch.device("cuda"), torch.float32) is None
    assert kernel_for(torch.device("cuda"), torch.bfloat16) is not None
    assert kernel_for(CPU, torch.bfloat16) is None
