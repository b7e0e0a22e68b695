"""What only a CUDA device can show. `make test-gpu`; left out where there is none."""

import pytest
import torch

from bench.acceptance.kernel import HEADS, MAX_LSE_ERROR, MAX_OUTPUT_ERROR, errors
from shardrank.actors import Reranker
from shardrank.actors.model.attention import PackedAttention, flash_varlen
from shardrank.actors.model.features import FeatureCache
from shardrank.actors.model.linear import linear, quantize_rows, supports_fp8
from shardrank.actors.packing import attention_plan
from tests.actors.test_attention import HEAD_DIM, masked, random_states, three_level_batch
from tests.support.engine import GOLDEN, TINY, candidate_set, golden_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def golden_differences(dtype, **settings):
    """Distances from the official float32 scores."""
    cases = [case for case in golden_cases() if case["kind"] not in {"error", "vfile", "vmixed"}]
    reranker = Reranker(
        str(TINY),
        device="cuda",
        dtype=dtype,
        special_tokens="official",
        empty="official",
        image_depth="official",
        media_root=str(GOLDEN),
        **settings,
    )
    scores = reranker.score_sets([candidate_set(case) for case in cases])
    return [
        abs(pairs[0].score - case["official"]["score"])
        for pairs, case in zip(scores, cases, strict=True)
    ]


@pytest.mark.parametrize("is_compiled", [False, True])
def test_float32_scores_equal_the_official_ones(is_compiled):
    assert max(golden_differences("float32", compile=is_compiled)) < 1e-4


def test_bfloat16_scores_stay_near_the_official_ones():
    assert max(golden_differences("bfloat16")) < 0.1


def test_fp8_scores_are_not_far_off():
    if not supports_fp8(torch.device("cuda")):
        pytest.skip("the device does not multiply fp8")
    differences = golden_differences("bfloat16", quantization="fp8")
    assert sum(differences) / len(differences) < 0.15  # imitated on a CPU: 0.08, the largest 0.48


def test_an_fp8_product_on_the_device_is_the_imitated_one():
    if not supports_fp8(torch.device("cuda")):
        pytest.skip("the device does not multiply fp8")
    torch.manual_seed(0)
    states, weight = torch.randn(64, 128).bfloat16(), quantize_rows(torch.randn(96, 128))
    on_device = weight._replace(values=weight.values.cuda(), scale=weight.scale.cuda())
    expected = linear(states, weight).float()
    found = linear(states.cuda(), on_device).float().cpu()
    assert (found - expected).norm() / expected.norm() < 1e-2


def test_features_that_left_the_device_come_back_unchanged():
    cache = FeatureCache(max_bytes=4_000, host_bytes=100_000)
    features = [torch.randn(10, 4, 16, device="cuda") for _ in range(8)]
    for index, each in enumerate(features):
        cache.put(bytes([index]), each)
        cache.get(bytes([index]), torch.device("cuda"))
    for index, each in enumerate(features):
        assert torch.equal(cache.get(bytes([index]), torch.device("cuda")), each)


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


def test_the_kernel_equals_the_formula_also_where_there_are_more_keys_than_queries():
    for name, output, lse in errors(flash_varlen, torch.device("cuda"), HEADS):
        assert output < MAX_OUTPUT_ERROR and lse < MAX_LSE_ERROR, name


def test_a_warm_scorer_stays_compiled_and_compiles_no_more():
    reranker = Reranker(str(TINY), device="cuda")
    reranker.scorer.warm_up()
    assert reranker.scorer.is_compiled
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    reranker.score("one query", ["of everything " * n for n in (1, 7, 40)])
    reranker.score("one", ["pair"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_a_budget_is_taken_from_free_memory():
    scorer = Reranker(str(TINY), device="cuda").scorer
    assert scorer.max_batch_tokens >= 10_240
