import math

import pytest
import torch
from engine import TINY, tiny_reranker

from actors import CandidateSet, RerankerConfig
from actors.errors import OutOfMemory
from actors.scorer import Scorer, choose_device, choose_dtype, halving


class SmallDevice:
    """A forward that runs out of memory over `capacity` pairs, and counts its calls."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.sizes = []

    def __call__(self, pairs):
        self.sizes.append(len(pairs))
        if len(pairs) > self.capacity:
            raise torch.OutOfMemoryError("no room")
        return [float(pair.num_tokens) for pair in pairs]


def prepared_pairs(count):
    documents = ["word " * (n + 1) for n in range(count)]
    prepared = tiny_reranker().preprocessor.prepare(CandidateSet.parse("query", documents))
    return list(prepared.pairs)


@pytest.mark.parametrize("capacity", [1, 2, 3, 7])
def test_out_of_memory_halves_the_plan_and_keeps_the_order(capacity):
    pairs = prepared_pairs(7)
    device = SmallDevice(capacity)
    assert halving(device, pairs) == [pair.num_tokens for pair in pairs]
    assert device.sizes[0] == 7


def test_a_pair_that_does_not_fit_alone_is_its_own_error():
    pairs = prepared_pairs(2)
    results = halving(SmallDevice(0), pairs)
    assert [type(result) for result in results] == [OutOfMemory, OutOfMemory]
    assert str(pairs[1].num_tokens) in str(results[1])


def test_other_failures_are_not_mistaken_for_memory():
    def broken(pairs):
        raise RuntimeError("illegal instruction")

    with pytest.raises(RuntimeError, match="illegal instruction"):
        halving(broken, prepared_pairs(2))


def test_a_logit_that_is_no_number_is_an_error_of_that_pair():
    scorer = Scorer(RerankerConfig(model=str(TINY)))
    scorer._model.head.fill_(math.nan)
    prepared = tiny_reranker().preprocessor.prepare(CandidateSet.parse("a", ["b"]))
    [[scored]] = scorer.score([prepared])
    assert scored.score is None and scored.logit is None
    assert scored.error.code == "non_finite_score"


def test_a_budget_below_max_length_is_refused():
    with pytest.raises(ValueError, match=r"max_batch_tokens .* \(10240\), got 512"):
        Scorer(RerankerConfig(model=str(TINY), max_batch_tokens=512))


def test_nothing_to_score_is_no_work():
    scorer = tiny_reranker().scorer
    assert scorer.score([]) == []
    prepared = tiny_reranker().preprocessor.prepare(CandidateSet.parse({}, ["a", "b"]))
    assert [pair.error.code for pair in scorer.score([prepared])[0]] == ["empty_query"] * 2


def test_an_unusable_device_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used"):
        choose_device("nonsense")


def test_cpu_scores_in_float32_and_cuda_in_bfloat16():
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("float16", torch.device("cuda")) == torch.float16


def test_a_page_of_many_queries_is_encoded_once():
    reranker = tiny_reranker(feature_cache_bytes=1 << 20)
    page = {"image": "media/sq_64x64.png"}
    reranker.score_sets([CandidateSet.parse(f"query {n}", [page]) for n in range(5)])
    reranker.score("one more", [page])
    assert reranker.scorer.vision_cache.num_misses == 1
    assert reranker.scorer.vision_cache.num_hits == 1
