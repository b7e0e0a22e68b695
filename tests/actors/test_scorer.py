import math
import shutil
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from PIL import Image as PILImage

from shardrank.actors import CandidateSet, QueryOptions, Reranker, RerankerConfig
from shardrank.actors.errors import OutOfMemory
from shardrank.actors.model.device import choose_device, choose_dtype, compiles
from shardrank.actors.prepared import PreparedSet
from shardrank.actors.scorer import Scorer, halving
from tests.support.engine import GOLDEN, TINY, tiny_reranker

SHORT = QueryOptions(max_length=512)


class SmallDevice:
    """A forward that runs out of memory over `capacity` pairs, and counts its calls."""

    def __init__(self, capacity, error=None):
        self.capacity = capacity
        self.error = error or torch.OutOfMemoryError("no room")
        self.sizes = []

    def __call__(self, pairs):
        self.sizes.append(len(pairs))
        if len(pairs) > self.capacity:
            raise self.error
        return torch.tensor([float(pair.num_tokens) for pair in pairs])


def prepared_pairs(count):
    documents = ["word " * (n + 1) for n in range(count)]
    prepared = tiny_reranker().preprocessor.prepare(CandidateSet.parse("query", documents))
    return list(prepared.pairs)


@pytest.mark.parametrize("capacity", [1, 2, 3, 7])
def test_out_of_memory_halves_the_plan_and_keeps_the_order(capacity):
    pairs = prepared_pairs(7)
    device = SmallDevice(capacity)
    assert torch.cat(halving(device, pairs)).tolist() == [pair.num_tokens for pair in pairs]
    assert device.sizes[0] == 7


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_whatever_says_that_memory_is_full_halves_the_plan(message):
    pairs = prepared_pairs(3)
    results = halving(SmallDevice(1, RuntimeError(message)), pairs)
    assert torch.cat(results).tolist() == [pair.num_tokens for pair in pairs]


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


def sets_that_share_much():
    long_query = "Which of these sentences speaks of a bicycle, a boat or a train? " * 8
    page = {"image": "media/sq_64x64.png"}
    queries = [long_query, {"text": "short", **page}, long_query + "And why?"]
    documents = [f"document {n} " * (n + 1) for n in range(6)] + [page, "", "document 3 " * 4]
    return [CandidateSet.parse(query, documents) for query in queries]


def test_a_prefix_kept_from_the_plan_before_changes_no_score():
    """Plans of one or few pairs each, so that nearly every one begins in the middle of a set."""
    sets = sets_that_share_much()
    whole = tiny_reranker().score_sets(sets)
    cut = tiny_reranker(options=SHORT, max_batch_tokens=512).score_sets(sets)
    for expected, found in zip(sum(whole, []), sum(cut, []), strict=True):
        assert found.score == pytest.approx(expected.score, abs=1e-5)


def test_a_query_is_computed_once_for_all_plans_of_its_set():
    reranker = tiny_reranker(options=SHORT, max_batch_tokens=512)
    decoder = reranker.scorer._model.decoder
    sizes, last_hidden = [], decoder.last_hidden

    def counted(batch, *arguments, **options):
        sizes.append((batch.num_cached, batch.num_tokens))
        return last_hidden(batch, *arguments, **options)

    decoder.last_hidden = counted
    try:
        documents = [f"document {n} " * 30 for n in range(9)]
        results = reranker.score_sets([CandidateSet.parse("bicycle " * 100, documents)])[0]
    finally:
        decoder.last_hidden = last_hidden
    (first, *others) = sizes
    assert first[0] == 0 and len(others) > 1
    assert all(cached > 150 for cached, _ in others)
    assert sum(tokens for _, tokens in sizes) < sum(r.num_tokens for r in results) / 2


def test_halves_of_a_plan_that_ran_out_of_memory_still_hand_their_prefix_on():
    reranker = tiny_reranker(options=SHORT, max_batch_tokens=1024)
    decoder = reranker.scorer._model.decoder
    last_hidden = decoder.last_hidden

    def small_device(batch, *arguments, **options):
        if len(batch.last_rows) > 2:
            raise torch.OutOfMemoryError("no room")
        return last_hidden(batch, *arguments, **options)

    sets = sets_that_share_much()
    expected = tiny_reranker().score_sets(sets)
    decoder.last_hidden = small_device
    try:
        found = reranker.score_sets(sets)
    finally:
        decoder.last_hidden = last_hidden
    for before, after in zip(sum(expected, []), sum(found, []), strict=True):
        assert after.score == pytest.approx(before.score, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_parts_give_the_same_scores():
    """One graph for every layer and any number of tokens."""
    sets = sets_that_share_much()
    compiled = tiny_reranker(compile=True)
    expected = tiny_reranker().score_sets(sets)
    for before, after in zip(sum(expected, []), sum(compiled.score_sets(sets), []), strict=True):
        assert after.score == pytest.approx(before.score, abs=1e-5)
    before = num_graphs()
    compiled.score("another length", ["of everything " * n for n in (1, 7, 40)])
    assert num_graphs() == before


def num_graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_nothing_is_compiled_after_the_warm_up(monkeypatch):
    """Graphs are traced as for the compiler, and run as they are, which takes no compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    reranker = Reranker(
        str(TINY), compile=True, media_root=str(GOLDEN), options=SHORT, max_batch_tokens=512
    )
    before = num_graphs()
    reranker.scorer.warm_up()
    assert reranker.scorer.vision_cache.num_misses == 0
    warm = num_graphs()
    assert warm > before
    reranker.score("one", ["pair"])
    reranker.score({"image": "media/sq_64x64.png"}, [{"image": "media/fr0.png"}, "document"])
    reranker.score_sets(sets_that_share_much())
    assert num_graphs() == warm


def no_compiler(graph, inputs):
    raise RuntimeError("Failed to find C compiler")


def test_where_nothing_compiles_the_warm_up_says_so_once_and_layers_run_as_they_are(
    caplog, monkeypatch
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    reranker = Reranker(str(TINY), compile=True)
    reranker.scorer.warm_up()
    reranker.scorer.warm_up()
    found = reranker.score("bicycle", ["a bicycle", "a train"])
    expected = tiny_reranker().score("bicycle", ["a bicycle", "a train"])
    assert found == pytest.approx(expected, abs=1e-5)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("torch.compile fails here, going on without it")
    assert warning.endswith("Failed to find C compiler")


def test_a_model_that_does_not_score_is_no_warm_one():
    scorer = Scorer(RerankerConfig(model=str(TINY), compile=True))
    scorer._model = None
    scorer._load = lambda **_: None
    with pytest.raises(AttributeError):
        scorer.warm_up()


def test_cpu_runs_as_it_is_and_cuda_compiled():
    assert not compiles(None, torch.device("cpu"))
    assert compiles(None, torch.device("cuda"))
    assert not compiles(False, torch.device("cuda"))


def test_who_waits_is_told_after_each_forward():
    reranker = tiny_reranker(max_batch_tokens=512, options=SHORT)
    documents = [f"{number} word " * 100 for number in range(6)]
    prepared = reranker.preprocessor.prepare(CandidateSet.parse("query", documents))
    told = []
    scores = reranker.scorer.score([prepared], told.append)
    assert len(told) >= 3 and 3 <= sum(told) < 6
    assert [one.score for one in scores[0]] == [
        one.score for one in reranker.scorer.score([prepared])[0]
    ]


def test_what_the_vision_cache_has_moves_no_bit_of_a_score():
    """Which images are encoded together then depends on what was scored before."""
    documents = [{"image": f"media/fr{number}.png", "text": f"{number}"} for number in range(6)]

    def logits(*before):
        reranker = tiny_reranker()
        for chosen in (*before, documents):
            prepared = reranker.preprocessor.prepare(CandidateSet.parse("query", chosen))
            scores = reranker.scorer.score([prepared])
        return [one.logit for one in scores[0]]

    assert logits(documents[::2]) == logits(documents[3:4]) == logits()


def mixed_sets(reranker: Reranker) -> list[PreparedSet]:
    """Short and long texts, and pages: one is a query as well, one stands in two sets."""
    pages = [PILImage.effect_noise((96 + 32 * n, 128), 80).convert("RGB") for n in range(3)]
    texts = [f"{'word number ' * (n % 40 + 1)}{n}" for n in range(60)]
    sets = [("a query", texts), ("another query, of more words", [*texts[:9], *pages[:2]])]
    sets.append(({"image": pages[2]}, [texts[3], {"text": "a page", "image": pages[1]}]))
    return [reranker.preprocessor.prepare(CandidateSet.parse(*each)) for each in sets]


def logits_of(reranker: Reranker, sets: Sequence[PreparedSet]) -> list[float | None]:
    return [pair.logit for scored in reranker.scorer.score(sets) for pair in scored]


def test_what_rides_along_moves_a_score_by_its_last_bits_and_on_request_by_none():
    shared, invariant = tiny_reranker(), tiny_reranker(batch_invariant=True)
    sets = mixed_sets(shared)
    alone = [each.only(index) for each in sets for index in range(each.num_pairs)]
    together, apart = logits_of(shared, sets), logits_of(shared, alone)
    assert together != apart  # which is what the option is for
    scores = torch.tensor([together, apart], dtype=torch.float64).sigmoid()
    assert (scores[0] - scores[1]).abs().max() <= 1e-5
    assert logits_of(invariant, sets) == logits_of(invariant, alone)
    fresh = tiny_reranker(batch_invariant=True)
    assert logits_of(fresh, alone[::-1]) == logits_of(invariant, sets)[::-1]
