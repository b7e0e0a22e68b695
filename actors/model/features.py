"""Vision features by content, so that a page is encoded once while it stays in the cache."""

import torch

from shardrank.actors.lru import LRU
from shardrank.actors.model.device import to_host

_Tier = LRU[bytes, torch.Tensor]


class FeatureCache:
    """Bounded in bytes, least recently used dropped first.

    On the device that made them; what was asked for again and has to leave it stays on the host,
    where host_bytes allow. What nobody asked for again is not worth the way there.
    """

    def __init__(self, max_bytes: int, host_bytes: int = 0) -> None:
        self._tiers: tuple[_Tier, _Tier] = LRU(max_bytes), LRU(host_bytes)
        self._hit: set[bytes] = set()  # of what is on the device
        self.num_hits = 0
        self.num_misses = 0

    def emptied(self) -> "FeatureCache":
        """Another one of the same size, in which nothing is yet."""
        on_device, on_host = self._tiers
        return FeatureCache(on_device.max_bytes, on_host.max_bytes)

    @property
    def size_bytes(self) -> int:
        return sum(tier.size_bytes for tier in self._tiers)

    def get(self, key: bytes, device: torch.device) -> torch.Tensor | None:
        """On the device; None, and one more miss, where no tier has it."""
        on_device, on_host = self._tiers
        features = on_device.get(key)
        spilled = on_host.pop(key) if features is None else None
        if features is None and spilled is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._hit.add(key)
        if spilled is not None:
            features = spilled.to(device, non_blocking=True)
            self._put(key, features)
        return features

    def put(self, key: bytes, features: torch.Tensor) -> None:
        self._put(key, features.clone())  # a view would keep its whole batch alive

    def _put(self, key: bytes, features: torch.Tensor) -> None:
        on_device, on_host = self._tiers
        for dropped_key, dropped in on_device.put(key, features):
            if dropped_key in self._hit and dropped.nbytes <= on_host.max_bytes:
                on_host.put(dropped_key, to_host(dropped))
            self._hit.discard(dropped_key)
