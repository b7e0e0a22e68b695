import torch

from shardrank.actors.model.features import FeatureCache

CPU = torch.device("cpu")


def features(tokens):
    return torch.full((tokens, 2, 4), float(tokens))


def test_the_least_recently_used_goes_first():
    cache = FeatureCache(max_bytes=2 * features(8).nbytes)
    cache.put(b"a", features(8))
    cache.put(b"b", features(8))
    assert cache.get(b"a", CPU) is not None
    cache.put(b"c", features(8))
    assert cache.get(b"b", CPU) is None
    assert cache.get(b"a", CPU) is not None


def test_the_cache_stays_within_its_bytes():
    cache = FeatureCache(max_bytes=1_000)
    for index in range(50):
        cache.put(bytes([index]), features(index % 9 + 1))
        assert cache.size_bytes <= 1_000
    assert cache.size_bytes > 0


def test_what_is_larger_than_the_cache_is_not_kept():
    cache = FeatureCache(max_bytes=10)
    cache.put(b"a", features(8))
    assert cache.get(b"a", CPU) is None
    assert cache.size_bytes == 0


def test_a_cached_view_does_not_keep_its_batch():
    cache = FeatureCache(max_bytes=1_000)
    cache.put(b"a", features(8)[:2])
    assert cache.get(b"a", CPU).untyped_storage().nbytes() == features(2).nbytes


def test_what_was_asked_for_again_and_leaves_the_device_stays_on_the_host_and_comes_back():
    cache = FeatureCache(max_bytes=features(8).nbytes, host_bytes=features(8).nbytes)
    cache.put(b"a", features(8))
    assert cache.get(b"a", CPU) is not None
    cache.put(b"b", features(7))
    assert torch.equal(cache.get(b"a", CPU), features(8))
    assert cache.get(b"b", CPU) is None  # nobody had asked for it
    cache.put(b"c", features(6))
    assert torch.equal(cache.get(b"a", CPU), features(8))
    assert (cache.num_hits, cache.num_misses) == (3, 1)


def test_both_tiers_stay_within_their_bytes():
    cache = FeatureCache(max_bytes=1_000, host_bytes=2_000)
    for index in range(50):
        cache.put(bytes([index]), features(index % 9 + 1))
        cache.get(bytes([index]), CPU)
        cache.get(bytes([index // 2]), CPU)
        assert cache.size_bytes <= 3_000
    assert cache.size_bytes > 1_000


def test_one_that_is_too_large_drives_nothing_out():
    cache = FeatureCache(max_bytes=features(8).nbytes)
    cache.put(b"a", features(8))
    cache.put(b"b", features(9))
    assert cache.get(b"a", CPU) is not None
