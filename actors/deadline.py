"""One end in time for all steps of a task."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """Unlike a limit for each step, it cannot be moved by who does a small step now and then."""

    ends: float  # of time.monotonic()

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Raises TimeoutError where nothing is left."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def bound(self, work: Callable[[], T]) -> T:
        """What `work` gives, by a thread that is left behind where it is too slow: a name's look-up
        cannot be stopped, and ends with the resolver's own patience.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # raised again by result()
                future.set_exception(error)

        threading.Thread(target=run, name="resolve", daemon=True).start()
        return future.result(self.left_s())
