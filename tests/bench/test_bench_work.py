"""FLOPs against PyTorch's own counter, and the work's counts against brute force."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bench.bound.flops import DecoderShape, Flops, ModelShape, VisionShape
from bench.bound.roofline import Gpu, model_seconds, roofline, roofline_line
from bench.bound.work import Counted, count, flops_of
from bench.peers.ours import Ours
from bench.peers.plain import TransformersOne
from bench.peers.protocol import PeerSettings
from bench.workloads import Workload
from tests.support.engine import GOLDEN, TINY

CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, out_shape=None, **__: sdpa_flop_count(query, key, value)
    )
}
"""Which PyTorch 2.13 does not count yet."""
SHAPE = ModelShape.of(TINY)
SMALL = ModelShape(DecoderShape(8, 2, 16, 2, 1, 4), VisionShape(8, 1, 16, 8, 4, 4, 1))


def workload(query: dict, documents: list[dict]) -> Workload:
    sets = [{"query": query, "documents": documents}]
    return Workload("test", sets, [[*range(len(documents))]])


def image() -> dict:
    return {"image": str(next(iter(sorted((GOLDEN / "media").glob("*.png")))))}


def tokens(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("documents", [[{"text": "one"}, {"text": "a longer one"}], [image()]])
def test_one_by_one_is_what_pytorch_counts(documents):
    work = workload({"text": "which?"}, documents)
    peer = TransformersOne(PeerSettings(str(TINY), threads=1))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        peer.score(work.sets)
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops for op, flops in counts.items() if "attention" in op)
    linear = sum(counts.get(f"aten.{op}", 0) for op in ("mm", "addmm", "convolution"))
    counted = count(work, TINY)
    ours = flops_of("one_by_one", counted, SHAPE)
    assert linear == pytest.approx(ours.linear.total())
    decoder = SHAPE.decoder
    upper_triangles = sum(len(pair) * (len(pair) - 1) / 2 for pair in counted.pairs)
    masked = 4 * upper_triangles * decoder.heads * decoder.head_dim * decoder.layers
    assert attention == pytest.approx(ours.attention + masked)


@pytest.mark.parametrize("seed", range(20))
def test_distinct_tokens_are_the_nodes_of_the_prefix_trie(seed):
    rng = random.Random(seed)
    pairs = [
        tokens(1, 2, 3, *(rng.randint(-1, 1) for _ in range(rng.randint(0, 8))))
        for _ in range(rng.randint(1, 12))
    ]
    nodes = {tuple(pair[: end + 1]) for pair in pairs for end in range(len(pair))}
    counted = Counted([pairs], [4])
    assert counted.num_distinct_tokens == len(nodes)
    distinct = {tuple(pair) for pair in pairs}
    query_keys = sum(map(len, nodes)) + sum(map(len, distinct))
    vision = 4 * 4 * 4 * SMALL.vision.hidden
    assert flops_of("needed", counted, SMALL).attention == 4 * query_keys * 8 + vision


def test_needed_is_never_more_than_any_other_work():
    rng = random.Random(1)
    pairs = [
        tokens(*range(40), *(rng.randint(0, 9) for _ in range(rng.randint(1, 60))))
        for _ in range(20)
    ]
    counted = Counted([pairs[:10], pairs[10:]], [])
    needed = flops_of("needed", counted, SMALL).total
    for work in ("prefix_cached", "one_by_one", "padded:8", "sorted_padded:8"):
        assert flops_of(work, counted, SMALL).total > needed


def test_a_padded_batch_is_as_long_as_its_longest_pair():
    counted = Counted([[tokens(*range(n)) for n in (2, 10, 3, 9)]], [])
    rows = SMALL.decoder
    weights = sum(i * o for i, o in [*rows.rest, *rows.key_value])
    for work, padded in (("padded:2", 2 * 10 + 2 * 9), ("sorted_padded:2", 2 * 10 + 2 * 3)):
        linear = flops_of(work, counted, SMALL).linear
        assert linear.total() == 2 * 2 * padded * weights


@pytest.mark.parametrize(
    ("work", "computed"), [("prefix_cached", 40 + 8 + 16), ("prefix_cached:8", 40 + 8 + 8)]
)
def test_a_prefix_cache_keeps_whole_blocks_and_never_the_last_token(work, computed):
    first = tokens(*range(40))
    counted = Counted([[first, tokens(*range(39), 99)], [first[:32]]], [])
    rows = SMALL.decoder
    weights = sum(i * o for i, o in [*rows.rest, *rows.key_value])
    assert flops_of(work, counted, SMALL).linear.total() == 4 * weights * computed


def test_nothing_of_an_earlier_run_is_left_in_our_caches():
    ours = Ours(PeerSettings(str(TINY), threads=1))
    first = ours.score(workload({"text": "a"}, [image()]).sets)
    assert ours.reranker.scorer.vision_cache.size_bytes > 0
    ours.forget()
    assert ours.reranker.scorer.vision_cache.size_bytes == 0
    assert ours.score(workload({"text": "a"}, [image()]).sets) == first


def test_an_image_is_needed_once_and_encoded_for_each_pair_by_others():
    work = workload({"text": "a"}, [image(), image()])
    counted = count(work, TINY)
    assert len(counted.patches) == 1 and counted.num_distinct_tokens == len(counted.pairs[0])
    first = Counted([counted.pairs[:1]], counted.patches)
    one = flops_of("one_by_one", first, SHAPE).total
    assert flops_of("one_by_one", counted, SHAPE).total == 2 * one
    assert flops_of("needed", counted, SHAPE).total < one


def test_the_roofline_is_the_longer_of_work_and_memory():
    one = Counter({(8, 16): 2.0 * 8 * 16 * 1_000})
    flops = Flops(one, attention=5e3)
    slow_memory, slow_units = Gpu("a", 1e15, 1.0), Gpu("b", 1.0, 1e15)
    weights = 2 * 2 * 8 * 16  # of two layers the gate and up projections
    assert model_seconds(flops, SMALL, 1_000, slow_units) == pytest.approx(flops.total)
    assert model_seconds(flops, SMALL, 1_000, slow_memory) == pytest.approx(
        2 * (1_000 * 24 + weights), rel=1e-6
    )


def test_the_roofline_of_a_workload_says_that_it_is_a_model():
    counted = count(workload({"text": "which?"}, [{"text": "one"}]), TINY)
    needed = flops_of("needed", counted, SHAPE)
    figures = roofline(needed, SHAPE, counted.num_distinct_tokens, len(counted.pairs))
    assert figures["H200"]["model_seconds"] <= figures["H100"]["model_seconds"]
    assert roofline_line(figures).startswith("a model, not measured")
