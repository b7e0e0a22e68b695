"""How often and how many at once a key may call: a token bucket and a count of running requests.

Counts are of this process alone: two servers with the same keys admit twice as much. Knows nothing
about HTTP frameworks, nor where keys come from.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from shardrank.serve.errors import TooManyRequests
from shardrank.serve.gate.keys import ApiKey

caller: ContextVar[str] = ContextVar("caller", default="")
"""Whose request it is, for what is shared fairly: the key's name, without keys the address."""

# A key that was quiet may send this many seconds' worth of its requests at once: enough for a page
# that asks for several rankings, too few to spend a whole minute's in one instant.
BURST_S = 10
ROUNDING = 1e-6  # of a request: who waits exactly retry_after_s is not refused for a float's sake
CONCURRENT_RETRY_S = 1.0  # when a running request will end is not known


def burst(requests_per_minute: int) -> float:
    """What a full bucket holds, in requests: a sixth of a minute's, and at least one.

    So no window of 60 s admits more than requests_per_minute + burst.
    """
    return max(1.0, requests_per_minute * BURST_S / 60)


@dataclass(slots=True)
class _Usage:
    """One key's. tokens is as of counted_at; since then it has grown."""

    tokens: float = math.inf  # a new bucket is full: the next count caps it
    counted_at: float = 0.0
    num_running: int = 0


class RateLimiter:
    """Of all keys. clock: seconds, never going back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._usages: dict[str, _Usage] = {}  # by the key's name

    @contextmanager
    def admit(self, key: ApiKey) -> Iterator[None]:
        """Around one request. TooManyRequests on entering says which limit, and costs nothing."""
        if key.requests_per_minute is None and key.max_concurrent is None:
            yield
            return
        usage = self._start(key)
        try:
            yield
        finally:
            with self._lock:
                usage.num_running -= 1

    def _start(self, key: ApiKey) -> _Usage:
        with self._lock:
            usage = self._usages.setdefault(key.name, _Usage())
            # Both may refuse, so the one that takes something on passing comes last.
            _check_concurrency(usage, key.max_concurrent)
            if key.requests_per_minute is not None:
                _take_token(usage, key.requests_per_minute, self._clock())
            usage.num_running += 1
            return usage


def _check_concurrency(usage: _Usage, limit: int | None) -> None:
    if limit is not None and usage.num_running >= limit:
        raise TooManyRequests(
            f"This key may have {limit} requests running at once",
            code="too_many_concurrent",
            retry_after_s=CONCURRENT_RETRY_S,
        )


def _take_token(usage: _Usage, requests_per_minute: int, now: float) -> None:
    rate = requests_per_minute / 60  # tokens a second
    grown = usage.tokens + (now - usage.counted_at) * rate
    tokens = min(burst(requests_per_minute), grown)
    if tokens < 1 - ROUNDING:
        raise TooManyRequests(
            f"This key may start {requests_per_minute} requests a minute, "
            f"at most {int(burst(requests_per_minute))} in one burst",
            code="rate_limited",
            retry_after_s=(1 - tokens) / rate,
        )
    usage.tokens, usage.counted_at = tokens - 1, now
