"""What only a CUDA device can show. `make test-gpu`; left out where there is none."""

import pytest
import torch
from engine import GOLDEN, TINY, candidate_set, golden_cases
from test_attention import HEAD_DIM, masked, random_states, three_level_batch

from actors import Reranker
from actors.attention import PackedAttention, flash_varlen
from actors.packing import attention_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def golden_difference(dtype):
    """The largest distance from the official float32 scores."""
    cases = [case for case in golden_cases() if case["kind"] not in {"error", "vfile", "vmixed"}]
    reranker = Reranker(
        str(TINY),
        device="cuda",
        dtype=dtype,
        special_tokens="official",
        media_root=str(GOLDEN),
    )
    scores = reranker.score_sets([candidate_set(case) for case in cases])
    return max(
        abs(pairs[0].score - case["official"]["score"])
        for pairs, case in zip(scores, cases, strict=True)
    )


def test_float32_scores_equal_the_official_ones():
    assert golden_difference("float32") < 1e-4


def test_bfloat16_scores_stay_near_the_official_ones():
    assert golden_difference("bfloat16") < 0.1


def test_flash_attention_in_parts_equals_one_masked_softmax():
    batch = three_level_batch()
    plan = attention_plan(batch)
    states = random_states(batch.num_tokens, batch.num_tokens)
    expected = masked(plan, *states)
    cuda = torch.device("cuda")
    on_device = [x.to(cuda, torch.bfloat16) for x in states]
    attended = PackedAttention(plan, cuda, flash_varlen)(*on_device).float().cpu()
    assert attended.shape[-1] == HEAD_DIM
    assert (attended - expected).norm() / expected.norm() < 1e-2


def test_a_budget_is_taken_from_free_memory():
    scorer = Reranker(str(TINY), device="cuda").scorer
    assert scorer.max_batch_tokens >= 10_240
