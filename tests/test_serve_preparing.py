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
from test_preprocessor import GOLDEN, png, preprocessor, same

from actors.config import OFFICIAL_OPTIONS, QueryOptions
from actors.data import CandidateSet, Content, Video
from actors.errors import RerankError
from actors.fetch import MediaReader
from actors.prepared import PreparedPair, PreparedSet
from actors.preprocessor import _PixelCache
from actors.prompt import Side
from actors.sides import OpenSide, ReadSide
from actors.video_process import VideoProcesses

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
    shared._cache = _PixelCache(3 * 64 * 96 * 3)  # drops something all the time
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
def test_the_pixel_cache_counts_right_under_eight_threads() -> None:
    cache = _PixelCache(250)

    def use(seed: int) -> None:
        numbers = random.Random(seed)
        for _ in range(3_000):
            key = (bytes([numbers.randrange(6)]), QueryOptions())
            if cache.get(key) is None:
                cache.put(key, np.zeros(100, dtype=np.uint8))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert cache._size_bytes == sum(pixels.nbytes for pixels in cache._pixels.values()) <= 250


def test_a_side_is_read_once_by_two_threads() -> None:
    both_read = threading.Barrier(2)
    reads = []

    def read(content: Content, options: QueryOptions, field: str) -> ReadSide:
        reads.append(field)
        with suppress(threading.BrokenBarrierError):  # the other one waits, as it should
            both_read.wait(0.2)
        return ReadSide(Side((), content.texts), ())

    opened = OpenSide(Content(("a",)), "query")
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(opened.read, QueryOptions(), read) for _ in range(2)]
        assert tasks[0].result() is tasks[1].result()
    assert reads == ["query"]


def frames_of(videos: VideoProcesses) -> tuple[np.ndarray, list[float]]:
    return videos.frames(CLIP, MediaReader(), OFFICIAL_OPTIONS, 10**8)


def test_a_decoder_that_hangs_holds_up_one_thread_alone() -> None:
    videos = VideoProcesses(2)
    expected, _ = frames_of(videos)
    hung = videos._idle.queue[-1]._child
    assert hung is not None
    os.kill(hung.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(frames_of, videos)
        try:
            _wait_until(lambda: videos._idle.qsize() == 1)
            assert np.array_equal(frames_of(videos)[0], expected)
            assert not waiting.done()
        finally:
            os.kill(hung.process.pid, signal.SIGCONT)
        assert np.array_equal(waiting.result()[0], expected)


def test_one_thread_needs_one_decoder() -> None:
    videos = VideoProcesses(2)
    for _ in range(3):
        frames_of(videos)
    assert sum(each._child is not None for each in videos._idle.queue) == 1


def _wait_until(is_so: Any) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)
