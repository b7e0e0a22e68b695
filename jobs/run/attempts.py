"""What pieces of work died of: so that a row that kills its process becomes that row's error.

A worker says what it begins. Where an attempt died, the next one also says which step it is at (a
row, a query's media, a read), outside the process that may die of it. A step that two attempts
died at is given up: it is an error in the output, and the work goes on without it. Nothing has to
be guessed and nothing repeated that did not die.

Every step has a deadline: a process that hangs in one ends itself, and so died of it.
"""

import faulthandler
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TextIO, TypeVar

from shardrank.actors.errors import Crashed, Failure, TimedOut
from shardrank.jobs.run.progress import Underway

MAX_DEATHS = 2
"""At one step. One death may be somebody else's fault: a node that went, memory taken by others."""

_SLACK_S = 1.0
"""A deadline is set anew at most this often: setting one starts threads."""
_GRACE_S = 5.0
_TELL_EVERY_S = 1.0
_ANSWERS_WITHIN_S = 5.0

MAX_DEATHS_OF_WORK = 8
"""At no step, or at one that cannot be given up."""

T = TypeVar("T")
Step = tuple[Hashable, ...]
UNKNOWN: Step = ()
Deaths = dict[Step, tuple[int, bool]]
"""Of each step: how often attempts died at it, and whether one of them hung."""
_NOBODYS = ((), ("slice",))


@dataclass(slots=True)
class _Work:
    """One piece: the step that its attempt is at, and where those before it died or hung."""

    step: Step = UNKNOWN
    deaths: Counter[Step] = field(default_factory=Counter)
    hung: set[Step] = field(default_factory=set)
    num_pairs: int = 0


class AttemptLog:
    """Kept by one process that does none of the work; as a Ray actor, the job's own.

    journal: a file that each call is added to, so that who restarts with it knows what was known:
    where memory is full, this process may be the one that is killed for it.
    """

    def __init__(self, journal: str | None = None) -> None:
        self._works: dict[Step, _Work] = {}
        self._failures: dict[int, str] = {}
        self._cuts: dict[Step, dict[int, int]] = {}
        self._ready: set[Step] = set()
        self._num_prepared = 0
        self._lost_videos: dict[str, str] = {}
        self._journal: TextIO | None = None
        if journal is not None:
            known = Path(journal).read_text() if Path(journal).exists() else ""
            self._replay(known)
            # Line by line, so that nothing that was said is lost with the process.
            self._journal = open(journal, "a", buffering=1)  # noqa: SIM115  open to its end
            if not known.endswith("\n"):
                self._write("\n")

    def _replay(self, journal: str) -> None:
        for line in journal.split("\n"):
            with suppress(ValueError):  # a line that was being written
                name, *arguments = json.loads(line)
                getattr(self, name)(*map(_as_tuple, arguments))

    def _note(self, *call: Any) -> None:
        if self._journal is not None:
            self._write(json.dumps(call) + "\n")

    def _write(self, line: str) -> None:
        """On a full disk nothing: then a restart knows less, and the work goes on."""
        assert self._journal is not None
        with suppress(OSError):
            self._journal.write(line)

    def begin(self, work: Step) -> Deaths:
        """Where attempts at this work died: one that began and did not end has died."""
        self._note("begin", work)
        known = self._works.get(work)
        if known is None:
            known = self._works[work] = _Work()
        else:
            known.deaths[known.step] += 1
        known.step, known.num_pairs = UNKNOWN, 0
        return {step: (num, step in known.hung) for step, num in known.deaths.items()}

    def at(self, work: Step, step: Step, hangs: bool = False) -> None:
        self._note("at", work, step, hangs)
        known = self._works.setdefault(work, _Work())
        known.step = step
        if hangs:
            known.hung.add(step)

    def end(self, work: Step) -> None:
        self._note("end", work)
        ended = self._works.pop(work, None)
        if work[0] == "start":
            self._ready.add(work)
        if work[0] == "prepare" and ended is not None:
            self._num_prepared += ended.num_pairs

    def done(self, work: Step, num_pairs: int) -> None:
        """So many pairs of it, by now. It is only shown: the journal has none of it."""
        if work in self._works:
            self._works[work].num_pairs = num_pairs

    def underway(self) -> Underway:
        num_pairs = {work: known.num_pairs for work, known in self._works.items()}
        preparing = sum(num for work, num in num_pairs.items() if work[0] == "prepare")
        scored = {work[1:]: num for work, num in num_pairs.items() if work[0] == "score"}
        return Underway(len(self._ready), self._num_prepared + preparing, scored)

    def fail(self, unit: int, message: str) -> None:
        """A unit that cannot be read as a whole."""
        self._note("fail", unit, message)
        self._failures[unit] = message

    def failures(self) -> dict[int, str]:
        return self._failures

    def cut(self, work: Step, index: int, num_rows: int) -> None:
        """The rows of a piece of what this work gives. Kept after its end, since Ray begins work
        again for a piece that went with its node.
        """
        self._note("cut", work, index, num_rows)
        self._cuts.setdefault(work, {})[index] = num_rows

    def cuts(self, work: Step) -> dict[int, int]:
        return self._cuts.get(work, {})

    def lose_video(self, key: str, why: str) -> None:
        """A file that a decoder was lost to, so that no other worker loses one to it."""
        self._note("lose_video", key, why)
        self._lost_videos[key] = why

    def lost_video(self, key: str) -> str | None:
        return self._lost_videos.get(key)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class RemoteLog:
    """An AttemptLog that is a Ray actor; a call returns when the log has it."""

    actor: Any

    def __getattr__(self, name: str) -> Any:
        """What the log has under this name. Nothing of it is there before the actor is, as in a
        copy that is being unpickled.
        """
        if name == "actor" or not hasattr(AttemptLog, name):
            raise AttributeError(name)
        return partial(self._call, name)

    def done(self, work: Step, num_pairs: int) -> None:
        self.actor.done.remote(work, num_pairs)  # whether it comes matters to nobody

    def underway(self) -> Underway:
        return self._call("underway", timeout=_ANSWERS_WITHIN_S)

    def _call(self, name: str, *arguments: Any, timeout: float | None = None, **named: Any) -> Any:
        import ray  # so that everything else here is tested without it

        return ray.get(getattr(self.actor, name).remote(*arguments, **named), timeout=timeout)


Attempts = AttemptLog | RemoteLog
"""A log as a worker sees it."""


class Attempt:
    """One attempt at a piece of work, within its worker. `timeout_s` bounds every step, and
    `first_timeout_s`, if given, what comes before the first progress.
    """

    def __init__(
        self,
        log: Attempts,
        work: Step,
        timeout_s: float | None = None,
        first_timeout_s: float | None = None,
    ) -> None:
        self._log = log
        self._work = work
        self._timeout_s = timeout_s
        self._limit_s = first_timeout_s or timeout_s
        self._deaths = log.begin(work)
        self._steps: list[Step] = []
        self._num_pairs = 0
        self._told = -math.inf
        self._armed = -math.inf
        self._timer: threading.Timer | None = None

    @classmethod
    def unwatched(cls) -> "Attempt":
        """Where a death is everybody's end anyway: no other process is there to go on."""
        return cls(AttemptLog(), UNKNOWN)

    @property
    def num_deaths(self) -> int:
        """How many earlier attempts died; after the first, steps are told to the log."""
        return sum(num for num, _ in self._deaths.values())

    def failure(self, *step: Hashable) -> Failure | None:
        """The error of a step that is given up."""
        num, is_hung = self._deaths.get(step, (0, False))
        if num < MAX_DEATHS:
            return None
        if is_hung:
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

    def progress(self, num_pairs: int = 0) -> None:
        """The step is long, and not hung: its deadline begins anew. So many more pairs are done."""
        self._num_pairs += num_pairs
        if num_pairs and time.monotonic() - self._told >= _TELL_EVERY_S:
            self._told = time.monotonic()
            self._log.done(self._work, self._num_pairs)
        if self._limit_s != self._timeout_s:
            self._limit_s = self._timeout_s
            self._disarm()
        if self._steps:
            self._enter(self._steps[-1])

    def _enter(self, step: Step) -> None:
        if self._deaths:
            self._log.at(self._work, step)
        if self._limit_s is None:
            return
        if step == UNKNOWN:
            self._disarm()
        elif time.monotonic() - self._armed > _SLACK_S:
            self._disarm()
            self._arm(self._limit_s + _SLACK_S)

    def _arm(self, seconds: float) -> None:
        self._armed = time.monotonic()
        self._timer = threading.Timer(seconds, self._hang_up)
        self._timer.daemon = True
        self._timer.start()
        # If the decoder never gives Python's lock back, the timer cannot run: this one can.
        faulthandler.dump_traceback_later(seconds + _GRACE_S, exit=True)

    def _disarm(self) -> None:
        self._armed = -math.inf
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
            self._timer = None

    def _hang_up(self) -> None:
        step = self._steps[-1] if self._steps else UNKNOWN
        self._log.at(self._work, step, hangs=True)
        faulthandler.dump_traceback()
        os._exit(1)

    def reads(self, rows: Iterator[T], name: str = "rows") -> Iterator[T]:
        """Each row's reading as a step. Raises the Failure of one that is given up, or that of the
        whole work, if it keeps dying where no step is to blame.
        """
        for number in count():
            error = self.failure("read", name, number) or self.hopeless()
            if error is not None:
                raise error
            with self.step("read", name, number):
                row = next(rows, None)
            if row is None:
                return
            yield row

    def hopeless(self) -> Failure | None:
        """The error of all of it, where attempts keep dying and no step is to blame."""
        num = sum(num for step, (num, _) in self._deaths.items() if step[:1] in _NOBODYS)
        if num < MAX_DEATHS_OF_WORK:
            return None
        return Crashed(f"the process died {num} times, and at no row that it was told to be at")

    def cut(self, index: int, num_rows: int) -> None:
        self._log.cut(self._work, index, num_rows)

    def cuts(self) -> dict[int, int]:
        """The rows of each piece that an attempt gave before."""
        return self._log.cuts(self._work)

    def end(self) -> None:
        self._log.end(self._work)
