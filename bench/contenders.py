"""One implementation on one workload: warmed up, its batch size chosen, its share of time kept to.

Knows nothing about the order of the rounds, or about other contenders.
"""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.pool import PeerPool
from bench.processes import PeerFailed, PeerProcess
from bench.workloads import Workload

_WARM_UP = (2, 4)
"""Queries and documents of each."""
_FEW_PAIRS = 16
"""Enough to tell about how long a pair takes."""
_TRIAL_PAIRS = 64
"""Two batches of the largest size tried; fewer where the trials would take too long."""
_TRIALS_SHARE = 0.5
"""Of a contender's budget, what its trials may take."""
_ALONE = ("one_by_one", "padded", "sorted_padded")
"""Work in which pairs or batches have nothing to do with one another: fewer are not slower each."""
_PATIENCE, _PATIENCE_S = 5.0, 300.0
"""With a time limit, an answer may take so many times the whole budget, and some more."""


@dataclass(slots=True)
class Contender:
    """budget_s: seconds for all its rounds, or None. `timed` is the workload or a part of it."""

    name: str
    workload: Workload
    directory: Path
    budget_s: float | None
    timed: Workload = field(init=False)
    label: str = ""
    work: str = "one_by_one"
    versions: dict[str, str] = field(default_factory=dict)
    batch_size: int | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None

    def __post_init__(self) -> None:
        self.timed = self.workload
        self.label = self.name

    @property
    def seconds(self) -> float:
        return statistics.median(run["seconds"] for run in self.runs)

    @property
    def is_done(self) -> bool:
        """Failed, or another round would go over the budget; one round is always made."""
        if self.failure is not None:
            return True
        if self.budget_s is None or not self.runs:
            return False
        return sum(run["seconds"] for run in self.runs) + self.seconds > self.budget_s

    def prepare(self, pool: PeerPool, rounds: int) -> None:
        """Start and warm up; choose the batch size, and how much of the workload there is time for.

        A failure is kept as this contender's own.
        """
        try:
            process = pool.get(self.name)
            self._introduce(process.introduction)
            sizes = process.introduction["batch_sizes"]
            self._warm_up(process)
            can_shorten = self.budget_s is not None and self.work.startswith(_ALONE)
            if sizes or can_shorten:
                seconds_per_pair = self._trials(process, sizes)
                if can_shorten:
                    self._shorten(seconds_per_pair * rounds)
        except PeerFailed as failure:
            self.failure = str(failure)

    def run(self, pool: PeerPool) -> None:
        try:
            process = pool.get(self.name)
            self._warm_up(process)
            self.runs.append(self._ask(process, self.timed))
        except PeerFailed as failure:
            self.failure = str(failure)

    def scores(self) -> list[dict[int, float]]:
        """Of each run, by the pair's place in the whole workload."""
        return [
            {
                place: score
                for places, scores in zip(self.timed.places, run["scores"], strict=True)
                for place, score in zip(places, scores, strict=True)
            }
            for run in self.runs
        ]

    def _introduce(self, introduction: dict[str, Any]) -> None:
        self.label = introduction["label"]
        self.work = introduction["work"]
        self.versions = introduction["versions"]

    def _warm_up(self, process: PeerProcess) -> None:
        if self.workload.name not in process.warmed:
            self._ask(process, self.workload.head(*_WARM_UP))
            process.warmed.add(self.workload.name)

    def _trials(self, process: PeerProcess, sizes: list[int]) -> float:
        """Seconds of a pair on a part of the workload, with the best batch size, which is kept."""
        part = self.workload.part(self._trial_pairs(process, sizes) if sizes else _FEW_PAIRS)
        tried: list[int | None] = [*sizes] or [None]
        seconds: dict[int | None, float] = {}
        for size in tried:
            self.batch_size = size
            seconds[size] = self._ask(process, part)["seconds"]
        self.batch_size = min(seconds, key=lambda size: seconds[size])
        if sizes:
            self.work = f"{self.work}:{self.batch_size}"
            self.label = f"{self.label} of {self.batch_size}"
        return seconds[self.batch_size] / part.num_pairs

    def _trial_pairs(self, process: PeerProcess, sizes: list[int]) -> int:
        """How many pairs each batch size is tried on."""
        if self.budget_s is None:
            return _TRIAL_PAIRS
        self.batch_size = min(sizes)
        few = self.workload.part(_FEW_PAIRS)
        seconds_of_a_pair = self._ask(process, few)["seconds"] / few.num_pairs
        fitting = int(_TRIALS_SHARE * self.budget_s / seconds_of_a_pair / len(sizes))
        return max(_FEW_PAIRS, min(fitting, _TRIAL_PAIRS))

    def _shorten(self, seconds_of_a_pair: float) -> None:
        """As many pairs as fit the budget, but never fewer than a batch or a few."""
        assert self.budget_s is not None
        fewest = max(_FEW_PAIRS, self.batch_size or 0)
        fitting = int(self.budget_s / seconds_of_a_pair)
        self.timed = self.workload.part(max(fitting, min(fewest, self.workload.num_pairs)))

    def _ask(self, process: PeerProcess, workload: Workload) -> dict[str, Any]:
        timeout_s = None if self.budget_s is None else _PATIENCE * self.budget_s + _PATIENCE_S
        answer = process.ask(workload.save(self.directory), self.batch_size, timeout_s)
        expected = [len(one["documents"]) for one in workload.sets]
        if [len(scores) for scores in answer["scores"]] != expected:
            raise PeerFailed("it answered with another number of scores than there are pairs")
        return answer
