"""A mapping bounded in bytes, of which the longest unused is dropped first."""

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=_Sized)


class LRU(Generic[K, V]):
    """Arrays, tensors or tables by key, `max_bytes` of them; safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def pop(self, key: K) -> V | None:
        with self._lock:
            return self._pop(key)

    def put(self, key: K, value: V) -> list[tuple[K, V]]:
        """What had to leave: this one alone where it is larger than all that is kept may be."""
        if value.nbytes > self.max_bytes:
            return [(key, value)]
        with self._lock:
            self._pop(key)
            self._values[key] = value
            self.size_bytes += value.nbytes
            dropped = []
            while self.size_bytes > self.max_bytes:
                oldest = next(iter(self._values))
                dropped.append((oldest, self._values[oldest]))
                self._pop(oldest)
        return dropped

    def _pop(self, key: K) -> V | None:
        value = self._values.pop(key, None)
        self.size_bytes -= value.nbytes if value is not None else 0
        return value
