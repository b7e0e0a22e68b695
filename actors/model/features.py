"""Vision features by content, so that a page is encoded once while it stays in the cache."""

from collections import OrderedDict

import torch

from shardrank.actors.model.device import to_host


class FeatureCache:
    """Bounded in bytes, least recently used dropped first.

    On the device that made them; what has to leave it stays on the host, where host_bytes allow.
    """

    def __init__(self, max_bytes: int, host_bytes: int = 0) -> None:
        self._tiers = _Tier(max_bytes), _Tier(host_bytes)
        self.num_hits = 0
        self.num_misses = 0

    @property
    def size_bytes(self) -> int:
        return sum(tier.size_bytes for tier in self._tiers)

    def get(self, key: bytes, device: torch.device) -> torch.Tensor | None:
        """On the device; None, and one more miss, where no tier has it."""
        on_device, on_host = self._tiers
        features = on_device.get(key)
        if features is None and (spilled := on_host.pop(key)) is not None:
            features = spilled.to(device, non_blocking=True)
            self._put(key, features)
        self.num_hits += features is not None
        self.num_misses += features is None
        return features

    def put(self, key: bytes, features: torch.Tensor) -> None:
        self._put(key, features.clone())  # a view would keep its whole batch alive

    def _put(self, key: bytes, features: torch.Tensor) -> None:
        on_device, on_host = self._tiers
        for dropped_key, dropped in on_device.put(key, features):
            if dropped.nbytes <= on_host.max_bytes:
                on_host.put(dropped_key, to_host(dropped))


class _Tier:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def get(self, key: bytes) -> torch.Tensor | None:
        if key not in self._features:
            return None
        self._features.move_to_end(key)
        return self._features[key]

    def pop(self, key: bytes) -> torch.Tensor | None:
        features = self._features.pop(key, None)
        self.size_bytes -= features.nbytes if features is not None else 0
        return features

    def put(self, key: bytes, features: torch.Tensor) -> list[tuple[bytes, torch.Tensor]]:
        """What had to leave: this one alone where it is larger than the whole tier."""
        if features.nbytes > self.max_bytes:
            return [(key, features)]
        self.pop(key)
        self._features[key] = features
        self.size_bytes += features.nbytes
        dropped = []
        while self.size_bytes > self.max_bytes:
            oldest = next(iter(self._features))
            dropped.append((oldest, self._features[oldest]))
            self.pop(oldest)
        return dropped
