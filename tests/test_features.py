import torch

from actors.features import FeatureCache


def features(tokens):
    return torch.full((tokens, 2, 4), float(tokens))


def test_the_least_recently_used_goes_first():
    cache = FeatureCache(max_bytes=2 * features(8).nbytes)
    cache.put(b"a", features(8))
    cache.put(b"b", features(8))
    assert cache.get(b"a") is not None
    cache.put(b"c", features(8))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None


def test_the_cache_stays_within_its_bytes():
    cache = FeatureCache(max_bytes=1_000)
    for index in range(50):
        cache.put(bytes([index]), features(index % 9 + 1))
        assert cache.size_bytes <= 1_000
    assert cache.size_bytes > 0


def test_what_is_larger_than_the_cache_is_not_kept():
    cache = FeatureCache(max_bytes=10)
    cache.put(b"a", features(8))
    assert cache.get(b"a") is None
    assert cache.size_bytes == 0


def test_a_cached_view_does_not_keep_its_batch():
    cache = FeatureCache(max_bytes=1_000)
    cache.put(b"a", features(8)[:2])
    assert cache.get(b"a").untyped_storage().nbytes() == features(2).nbytes
