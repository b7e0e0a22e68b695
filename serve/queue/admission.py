"""How much is in the queue, how fast it leaves, and who is refused for it. Plain numbers."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from shardrank.serve.errors import TooManyRequests

logger = logging.getLogger(__name__)

_HALVINGS = 30


class Observer(Protocol):
    """What metrics are told. A batch's tokens are counted as the planner counts them."""

    def batch(self, num_pairs: int, num_tokens: int, fill: float, seconds: float) -> None: ...

    def queue(self, num_pairs: int, num_tokens: int) -> None: ...


class Admission:
    """Pairs and tokens that are in: waiting, or in the batch being scored.

    Requests take turns of turn_tokens. So a new one waits, of each that is in, for as many tokens
    as it brings itself, for one turn at least, and for no more than there are left.

    max_wait_s: who would wait longer for the others, at the speed of the last batches, is refused.
    Before the first batch, whose speed nobody knows, who brings more than max_pairs together is.
    Nobody is refused when nobody waits.
    """

    def __init__(
        self, max_wait_s: float, max_pairs: int, turn_tokens: int, observer: Observer | None
    ) -> None:
        self._max_wait_s = max_wait_s
        self._max_pairs = max_pairs
        self._turn_tokens = turn_tokens
        self._observer = observer
        self.num_pairs = 0
        self.num_tokens = 0
        self.tokens_per_s: float | None = None

    def wait_s(self, left: Sequence[int], num_tokens: int) -> float:
        """What a request of num_tokens would wait for others; 0 before the first batch.

        left: the tokens of each request that is in.
        """
        if self.tokens_per_s is None:
            return 0.0
        return self._ahead(left, num_tokens, drained=0) / self.tokens_per_s

    def check(self, left: Sequence[int], num_pairs: int, num_tokens: int) -> None:
        """Raises TooManyRequests on a request of so many more, with the time until it is none."""
        if not self.num_pairs or not num_pairs:
            return
        if self.tokens_per_s is None:
            if self.num_pairs + num_pairs > self._max_pairs:
                raise self._refusal(self._max_wait_s)
        elif self.wait_s(left, num_tokens) > self._max_wait_s:
            raise self._refusal(self._room_in_s(left, num_tokens, self.tokens_per_s))

    def _ahead(self, left: Sequence[int], num_tokens: int, drained: float) -> float:
        """Tokens that are scored before it, once each of those that are in had `drained` more."""
        own = max(num_tokens, self._turn_tokens)
        return sum(min(max(0.0, tokens - drained), own) for tokens in left)

    def _room_in_s(self, left: Sequence[int], num_tokens: int, tokens_per_s: float) -> float:
        """When the request would be taken, if nobody else came."""
        low, high = 0.0, float(max(left))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._ahead(left, num_tokens, middle) > self._max_wait_s * tokens_per_s:
                low = middle
            else:
                high = middle
        return sum(min(tokens, high) for tokens in left) / tokens_per_s

    def _refusal(self, retry_after_s: float) -> TooManyRequests:
        return TooManyRequests(
            f"no capacity left: {self.num_pairs} pairs are waiting, try again later",
            code="overloaded",
            retry_after_s=retry_after_s,
        )

    def add(self, num_pairs: int, num_tokens: int) -> None:
        self.num_pairs += num_pairs
        self.num_tokens += num_tokens
        self._tell(lambda observer: observer.queue(self.num_pairs, self.num_tokens))

    def scored(self, num_pairs: int, num_tokens: int, fill: float, seconds: float) -> None:
        """One batch. In the moving average a full one weighs more: a small one is slow for its
        size.
        """
        if num_tokens and seconds > 0:
            speed = num_tokens / seconds
            before = speed if self.tokens_per_s is None else self.tokens_per_s
            self.tokens_per_s = before + (0.1 + 0.4 * min(1.0, fill)) * (speed - before)
        self._tell(lambda observer: observer.batch(num_pairs, num_tokens, fill, seconds))

    def _tell(self, told: Callable[[Observer], None]) -> None:
        try:
            if self._observer is not None:
                told(self._observer)
        except Exception:  # metrics that fail must not stop the queue
            logger.exception("the queue's observer failed")
