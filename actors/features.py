"""Vision features by content, so that a page is encoded once while it stays in the cache."""

from collections import OrderedDict

import torch


class FeatureCache:
    """Bounded in bytes, least recently used dropped first, on the device that made them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.size_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def get(self, key: bytes) -> torch.Tensor | None:
        features = self._features.get(key)
        if features is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._features.move_to_end(key)
        return features

    def put(self, key: bytes, features: torch.Tensor) -> None:
        if features.nbytes > self._max_bytes or key in self._features:
            return
        self._features[key] = features.clone()  # a view would keep its whole batch alive
        self.size_bytes += features.nbytes
        while self.size_bytes > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.size_bytes -= dropped.nbytes
