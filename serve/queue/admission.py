"""How much is in the queue, how fast it leaves, and who is refused for it. Plain numbers."""

import logging
from typing import Protocol

from shardrank.serve.errors import TooManyRequests

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """What metrics are told. A batch's tokens are counted as the planner counts them."""

    def batch(self, num_pairs: int, num_tokens: int, fill: float, seconds: float) -> None: ...

    def queue(self, num_pairs: int, num_tokens: int) -> None: ...


class Admission:
    """Pairs and tokens that are in: waiting, or in the batch being scored.

    max_wait_s: who would wait longer, at the speed of the last batches, is refused; so is who
    brings more than max_pairs together. Nobody is refused when nobody waits.
    """

    def __init__(self, max_wait_s: float, max_pairs: int, observer: Observer | None) -> None:
        self._max_wait_s = max_wait_s
        self._max_pairs = max_pairs
        self._observer = observer
        self.num_pairs = 0
        self.num_tokens = 0
        self.tokens_per_s: float | None = None

    @property
    def wait_s(self) -> float:
        """For who comes now; 0 before the first batch."""
        return self.num_tokens / self.tokens_per_s if self.tokens_per_s else 0.0

    def check(self, num_pairs: int) -> None:
        """Raises TooManyRequests on so many pairs more."""
        if not self.num_pairs or not num_pairs:
            return
        if self.wait_s > self._max_wait_s or self.num_pairs + num_pairs > self._max_pairs:
            raise TooManyRequests(
                f"no capacity left: {self.num_pairs} pairs are waiting, try again later",
                code="overloaded",
                retry_after_s=self.wait_s or self._max_wait_s,
            )

    def add(self, num_pairs: int, num_tokens: int) -> None:
        self.num_pairs += num_pairs
        self.num_tokens += num_tokens
        if self._observer is None:
            return
        try:
            self._observer.queue(self.num_pairs, self.num_tokens)
        except Exception:  # metrics that fail must not stop the queue
            logger.exception("the queue's observer failed")

    def scored(self, num_pairs: int, num_tokens: int, fill: float, seconds: float) -> None:
        """One batch. In the moving average a full one weighs more: a small one is slow for its
        size.
        """
        if num_tokens and seconds > 0:
            speed = num_tokens / seconds
            before = speed if self.tokens_per_s is None else self.tokens_per_s
            self.tokens_per_s = before + (0.1 + 0.4 * min(1.0, fill)) * (speed - before)
        if self._observer is None:
            return
        try:
            self._observer.batch(num_pairs, num_tokens, fill, seconds)
        except Exception:  # as above
            logger.exception("the queue's observer failed")
