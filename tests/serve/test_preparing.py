import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardrank.actors.config import OFFICIAL_OPTIONS, QueryOptions
from shardrank.actors.data import CandidateSet, Content, Video
from shardrank.actors.errors import RerankError
from shardrank.actors.families.family import Side
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.lru import LRU
from shardrank.actors.media.images import Permit, permit_all
from shardrank.actors.media.video_process import VideoProcesses
from shardrank.actors.planner import PairCost, plan, set_costs
from shardrank.actors.prepared import PreparedPair, PreparedSet
from shardrank.actors.sides import OpenSide, ReadSide
from shardrank.serve.queue.queued import (
    NobodyWaits,
    Piece,
    Slice,
    estimated_tokens,
    prepare,
    slices,
)
from tests.actors.test_preprocessor import GOLDEN, png, preprocessor, same

CLIP = Video(str(GOLDEN / "media" / "v2s_24.mp4"))


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def side(number: int) -> Any:
    """Texts, and images and a video of which several documents have the same."""
    image = png(64, 96, seed=number % 3)
    sides = [
        f"a text of its own, number {number}",
        {"image": image, "text": f"a page {number % 4}"},
        {"image": [image, png(96, 64, seed=number % 5)]},
        {"image": "media/p320x240.png"},
        {"video": {"frames": [image, png(64, 96, seed=7)]}},
        {"video": "media/v2s_24.mp4", "text": f"{number}"},
        {"image": b"broken"},
        {"video": b"broken"},
    ]
    return sides[number % len(sides)]


def mixed_sets(seed: int) -> list[CandidateSet]:
    numbers = random.Random(seed)
    return [
        CandidateSet.parse(
            side(numbers.randrange(24)), [side(numbers.randrange(24)) for _ in range(4)]
        )
        for _ in range(6)
    ]


def equal(left: PreparedSet, right: PreparedSet) -> bool:
    def alike(one: PreparedPair | RerankError, other: PreparedPair | RerankError) -> bool:
        if isinstance(one, RerankError) or isinstance(other, RerankError):
            return repr(one) == repr(other)
        return same(one, other) and np.array_equal(one.visual_index, other.visual_index)

    return [each.key for each in left.visuals] == [each.key for each in right.visuals] and all(
        map(alike, left.pairs, right.pairs)
    )


@pytest.mark.usefixtures("hasty_threads")
def test_eight_threads_prepare_what_one_prepares() -> None:
    sets = mixed_sets(0)
    expected = [preprocessor().prepare(each) for each in sets]
    shared = preprocessor()
    shared._pixels = LRU(3 * 64 * 96 * 3)  # drops something all the time
    with ThreadPoolExecutor(8) as threads:
        tasks = [
            (number, threads.submit(shared.prepare, sets[number]))
            for turn in range(4)
            for number in random.Random(turn).sample(range(len(sets)), len(sets))
        ]
        assert all(equal(task.result(), expected[number]) for number, task in tasks)


def test_threads_share_one_open_query() -> None:
    shared = preprocessor()
    query = shared.open_query(Content.parse({"video": "media/v2s_24.mp4"}))
    documents = [[Content.parse(side(number))] for number in range(16)]

    def prepare(part: list[Content]) -> PreparedSet:
        return shared.prepare_pairs((query, shared.open_document(each)) for each in part)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(prepare, documents))
    assert all(map(equal, found, map(prepare, documents)))


@pytest.mark.usefixtures("hasty_threads")
def test_a_cache_counts_right_under_eight_threads() -> None:
    cache: LRU[int, np.ndarray] = LRU(250)

    def use(seed: int) -> None:
        numbers = random.Random(seed)
        for _ in range(3_000):
            key = numbers.randrange(6)
            if cache.get(key) is None:
                cache.put(key, np.zeros(100, dtype=np.uint8))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert cache.size_bytes == sum(pixels.nbytes for pixels in cache._values.values()) <= 250


def test_a_side_is_read_once_by_two_threads() -> None:
    both_read = threading.Barrier(2)
    reads = []

    def read(content: Content, options: QueryOptions, field: str, permit: Permit) -> ReadSide:
        reads.append(field)
        with suppress(threading.BrokenBarrierError):  # the other one waits, as it should
            both_read.wait(0.2)
        return ReadSide(Side((), content.texts), ())

    opened = OpenSide(Content(("a",)), "query")
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(opened.read, QueryOptions(), read) for _ in range(2)]
        assert tasks[0].result() is tasks[1].result()
    assert reads == ["query"]


def frames_of(videos: VideoProcesses, video: Video) -> tuple[np.ndarray, list[float]]:
    return videos.frames(video, MediaReader(), OFFICIAL_OPTIONS, 10**8)


def test_a_decoder_that_hangs_holds_up_one_thread_alone() -> None:
    videos = VideoProcesses(2)
    other = Video(str(GOLDEN / "media" / "v_short3.mp4"))
    expected, _ = frames_of(videos, other)
    hung = videos._idle.queue[-1]._child
    assert hung is not None
    os.kill(hung.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(frames_of, videos, CLIP)
        try:
            _wait_until(lambda: videos._idle.qsize() == 1)
            assert np.array_equal(frames_of(videos, other)[0], expected)
            assert not waiting.done()
        finally:
            os.kill(hung.process.pid, signal.SIGCONT)
        assert len(waiting.result()[1]) >= 2


def test_one_thread_needs_one_decoder() -> None:
    videos = VideoProcesses(2)
    for _ in range(3):
        frames_of(videos, CLIP)
    assert sum(each._child is not None for each in videos._idle.queue) == 1


def _wait_until(is_so: Any) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


# Estimates, slices, pieces

PLAIN = preprocessor()


@pytest.mark.parametrize(
    ("document", "least", "most"),
    [
        ("", 0, 0),
        ("word " * 70, 100, 100),
        ("\u4e2d\u6587" * 35, 60, 60),
        ("a \ud800", 1, 1),
        ("word " * 100_000, 10_240, 10_240),  # max_length
        ({"image": b"not looked at"}, 1_000, 1_000),
        ({"image": [b"1", b"2"], "text": "word " * 70}, 2_100, 2_100),
        ({"video": b"not looked at"}, 1_000, 5_000),
        ({"video": {"frames": [b"1"] * 6}}, 750, 750),
        ({"video": {"frames": [b"1"] * 1_000}}, 8_000, 8_000),  # max_frames
        (3, 0, 0),
    ],
)
def test_tokens_are_estimated_by_length_and_kind(document: Any, least: int, most: int) -> None:
    shared, own = estimated_tokens(CandidateSet.parse("q" * 35, ["", document]))
    assert shared == 80
    assert own[0] == 0 and least <= own[1] <= most


def test_a_query_that_cannot_be_scored_costs_nothing() -> None:
    assert estimated_tokens(CandidateSet.parse(None, ["a" * 90])) == (0, [0])
    assert estimated_tokens(CandidateSet.parse("a", ["a" * 90]), RerankError("no")) == (0, [0])


def test_a_querys_own_limits_bound_the_estimate() -> None:
    small = QueryOptions(image_max_pixels=64 * 1_024, max_length=50).over(OFFICIAL_OPTIONS)
    candidates = CandidateSet.parse("q", [{"image": b"", "text": "word " * 500}])
    assert estimated_tokens(candidates, small)[1] == [114]


def test_slices_are_the_whole_set_in_order() -> None:
    documents = ["x " * (7 * (n % 5) * 10) for n in range(300)] + [{"image": b""}] * 7
    parts = slices(3, CandidateSet.parse("q", documents), OFFICIAL_OPTIONS, 4_096)
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(307))
    assert {part.set_index for part in parts} == {3}
    assert max(part.stop - part.start for part in parts) <= 64
    assert max(part.num_tokens for part in parts) <= 2_048 + 100
    assert [part.has_media for part in parts] == sorted(part.has_media for part in parts)
    assert sum(part.has_media for part in parts) in (4, 5)


def test_many_short_documents_are_cut_by_number() -> None:
    parts = slices(0, CandidateSet.parse("q", ["a"] * 150), OFFICIAL_OPTIONS, 65_536)
    assert [(part.start, part.stop) for part in parts] == [(0, 64), (64, 128), (128, 150)]
    assert slices(0, CandidateSet.parse("q", []), OFFICIAL_OPTIONS, 65_536) == []


def test_the_querys_media_count_as_its_slices() -> None:
    candidates = CandidateSet.parse({"image": b""}, ["a"])
    assert slices(0, candidates, OFFICIAL_OPTIONS, 4_096)[0].has_media


def prepared_pieces(candidates: CandidateSet, budget: int) -> tuple[list[Piece], Slice]:
    query = PLAIN.open_query(candidates.query, candidates.instruction, candidates.options)
    part = Slice(2, 1, len(candidates.documents), 0, True)
    return prepare(PLAIN, query, candidates, part, budget, permit_all), part


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["q", "a query of several words " * 6, {"image": "media/sq_64x64.png"}]),
    st.lists(
        st.sampled_from(["a", "some words " * 20, {"image": png(64, 96)}, b"broken", "x " * 300]),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from([150, 400, 4_096]),
)
@example("q", ["a", b"broken", "x " * 300], 150)  # the pair that shares all is in another piece
def test_pieces_are_a_slice_in_order_within_a_batch(
    query: Any, documents: list[Any], budget: int
) -> None:
    candidates = CandidateSet.parse(query, documents)
    found, part = prepared_pieces(candidates, budget)
    whole = PLAIN.prepare(candidates)
    assert [piece.start for piece in found] == [
        1 + sum(piece.num_pairs for piece in found[:n]) for n in range(len(found))
    ]
    pairs = [pair for piece in found for pair in piece.prepared.pairs]
    assert len(pairs) == part.stop - part.start
    for pair, expected in zip(pairs, whole.pairs[1:], strict=True):
        if isinstance(expected, RerankError):
            assert repr(pair) == repr(expected)
        else:
            assert same(pair, expected)
    for piece in found:
        assert piece.num_tokens >= sum(cost.own for cost in costs_of(piece))
        assert len(plan(costs_of(piece), max(budget, piece.num_tokens))) <= 1
        assert piece.num_tokens <= budget or len(costs_of(piece)) == 1
        assert piece.num_tokens == 0 or costs_of(piece)


def costs_of(piece: Piece) -> list[PairCost]:
    pairs = [pair for pair in piece.prepared.pairs if isinstance(pair, PreparedPair)]
    return set_costs(pairs, 0)


def test_a_long_request_is_cut_so_that_others_fit_beside_it() -> None:
    candidates = CandidateSet.parse("q", ["some words, different ones " * 12] * 40)
    found, _ = prepared_pieces(candidates, 4_096)
    assert max(piece.num_tokens for piece in found) < 4_096 / 4 + 200


def test_what_is_not_wanted_is_not_prepared() -> None:
    candidates = CandidateSet.parse("q", ["a"] * 10)
    query = PLAIN.open_query(candidates.query)
    part = Slice(0, 0, 10, 0, False)
    asked: list[int] = []

    def permit() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise NobodyWaits

    with pytest.raises(NobodyWaits):
        prepare(PLAIN, query, candidates, part, 4_096, permit)


def test_messages_name_the_document_by_its_place_in_the_set() -> None:
    candidates = CandidateSet.parse("q", ["a"] * 2 + ["b\ud800"])
    found, _ = prepared_pieces(candidates, 4_096)
    assert str(found[0].prepared.pairs[1]).startswith("documents[2] has a text")
