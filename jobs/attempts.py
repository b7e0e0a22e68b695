"""What pieces of work died of: so that a row that kills its process becomes that row's error.

A worker says what it begins. Where an attempt died, the next one also says which step it is at (a
row, a query's media, a read), outside the process that may die of it. A step that two attempts
died at is given up: it is an error in the output, and the work goes on without it. Nothing has to
be guessed and nothing repeated that did not die.

Every step has a deadline: a process that hangs in one ends itself, and so died of it.
"""

import faulthandler
import math
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, TypeVar

from actors.errors import Crashed, Failure, TimedOut

MAX_DEATHS = 2
"""At one step. One death may be somebody else's fault: a node that went, memory taken by others."""

_SLACK_S = 1.0
"""A deadline is set anew at most this often: setting one starts a thread."""

MAX_DEATHS_OF_WORK = 8
"""At no step, or at one that cannot be given up."""

T = TypeVar("T")
Step = tuple[Hashable, ...]
UNKNOWN: Step = ()
_NOBODYS = ((), ("slice",))


@dataclass(slots=True)
class _Work:
    """One piece: the step that its attempt is at, since when, and where those before it died."""

    step: Step = UNKNOWN
    since: float = 0.0
    deaths: Counter[Step] = field(default_factory=Counter)
    seconds: dict[Step, float] = field(default_factory=dict)


class AttemptLog:
    """Kept by one process that does none of the work; as a Ray actor, the job's own."""

    def __init__(self) -> None:
        self._works: dict[Step, _Work] = {}
        self._failures: dict[int, str] = {}

    def begin(self, work: Step) -> dict[Step, tuple[int, float]]:
        """Each step that attempts at this work died at: how often, and seconds into it.

        An attempt that began and did not end has died.
        """
        known = self._works.get(work)
        if known is None:
            known = self._works[work] = _Work()
        else:
            known.deaths[known.step] += 1
            known.seconds[known.step] = time.monotonic() - known.since
        known.step, known.since = UNKNOWN, time.monotonic()
        return {step: (num, known.seconds[step]) for step, num in known.deaths.items()}

    def at(self, work: Step, step: Step) -> None:
        known = self._works.setdefault(work, _Work())
        known.step, known.since = step, time.monotonic()

    def end(self, work: Step) -> None:
        self._works.pop(work, None)

    def fail(self, unit: int, message: str) -> None:
        """A unit that cannot be read as a whole."""
        self._failures[unit] = message

    def failures(self) -> dict[int, str]:
        return self._failures


class Attempts(Protocol):
    """A log as a worker sees it."""

    def begin(self, work: Step) -> dict[Step, tuple[int, float]]: ...
    def at(self, work: Step, step: Step) -> None: ...
    def end(self, work: Step) -> None: ...
    def fail(self, unit: int, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class RemoteLog:
    """An AttemptLog that is a Ray actor; a call returns when the log has it."""

    actor: Any

    def begin(self, work: Step) -> dict[Step, tuple[int, float]]:
        return self._call("begin", work)

    def at(self, work: Step, step: Step) -> None:
        self._call("at", work, step)

    def end(self, work: Step) -> None:
        self._call("end", work)

    def fail(self, unit: int, message: str) -> None:
        self._call("fail", unit, message)

    def failures(self) -> dict[int, str]:
        return self._call("failures")

    def _call(self, name: str, *arguments: Any) -> Any:
        import ray  # so that everything else here is tested without it

        return ray.get(getattr(self.actor, name).remote(*arguments))


class Attempt:
    """One attempt at a piece of work, within its worker. `timeout_s` bounds every step."""

    def __init__(self, log: Attempts, work: Step, timeout_s: float | None = None) -> None:
        self._log = log
        self._work = work
        self._timeout_s = timeout_s
        self._deaths = log.begin(work)
        self._steps: list[Step] = []
        self._armed = -math.inf

    @classmethod
    def unwatched(cls) -> "Attempt":
        """Where a death is everybody's end anyway: no other process is there to go on."""
        return cls(AttemptLog(), UNKNOWN)

    @property
    def num_deaths(self) -> int:
        """Of earlier attempts; after the first, steps are told to the log."""
        return sum(num for num, _ in self._deaths.values())

    def failure(self, *step: Hashable) -> Failure | None:
        """The error of a step that is given up."""
        num, seconds = self._deaths.get(step, (0, 0.0))
        if num < MAX_DEATHS:
            return None
        if self._timeout_s is not None and seconds >= self._timeout_s:
            return TimedOut(f"it took over {self._timeout_s:g} s, {num} times (--pair-timeout-s)")
        return Crashed(f"the process that worked on it died {num} times")

    @contextmanager
    def step(self, *step: Hashable) -> Iterator[None]:
        """Within another step it is the inner one that counts, until it ends."""
        self._steps.append(step)
        self._enter(step)
        try:
            yield
        finally:
            self._steps.pop()
            self._enter(self._steps[-1] if self._steps else UNKNOWN)

    def _enter(self, step: Step) -> None:
        if self._deaths:
            self._log.at(self._work, step)
        if self._timeout_s is None:
            return
        if step == UNKNOWN:
            faulthandler.cancel_dump_traceback_later()
            self._armed = -math.inf
        elif (now := time.monotonic()) - self._armed > _SLACK_S:
            # A thread of its own, without Python's lock, which a decoder may hold for ever.
            seconds = self._timeout_s + _SLACK_S
            faulthandler.dump_traceback_later(seconds, exit=True)
            self._armed = now

    def reads(self, rows: Iterator[T]) -> Iterator[T]:
        """Each row's reading as a step. Raises the Failure of one that is given up, or that of the
        whole work, if it keeps dying where no step is to blame.
        """
        for number in count():
            error = self.failure("read", number) or self._hopeless()
            if error is not None:
                raise error
            with self.step("read", number):
                row = next(rows, None)
            if row is None:
                return
            yield row

    def _hopeless(self) -> Failure | None:
        num = sum(num for step, (num, _) in self._deaths.items() if step[:1] in _NOBODYS)
        if num < MAX_DEATHS_OF_WORK:
            return None
        return Crashed(f"the process died {num} times, and at no row that it was told to be at")

    def end(self) -> None:
        self._log.end(self._work)
