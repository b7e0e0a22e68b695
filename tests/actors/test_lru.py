import numpy as np

from shardrank.actors.lru import LRU

PIXELS = np.zeros(100, dtype=np.uint8)


def test_the_longest_unused_is_dropped_first() -> None:
    cache: LRU[int, np.ndarray] = LRU(250)
    assert cache.put(0, PIXELS) == cache.put(1, PIXELS) == []
    assert cache.get(0) is PIXELS
    ((dropped, _),) = cache.put(2, PIXELS)
    assert dropped == 1
    assert [cache.get(key) is not None for key in range(3)] == [True, False, True]


def test_nothing_larger_than_all_that_is_kept_is_taken() -> None:
    cache: LRU[int, np.ndarray] = LRU(50)
    ((dropped, _),) = cache.put(0, PIXELS)
    assert dropped == 0 and cache.get(0) is None and cache.size_bytes == 0


def test_a_key_that_is_put_again_counts_once() -> None:
    cache: LRU[int, np.ndarray] = LRU(250)
    cache.put(0, PIXELS)
    cache.put(0, PIXELS[:40])
    assert cache.size_bytes == 40 and len(cache.get(0)) == 40
    assert cache.pop(0) is not None and cache.size_bytes == 0
