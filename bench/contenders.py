"""The implementations on the workloads: started, warmed up, timed in rounds that take turns."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import END_TIMEOUT_S, PeerFailed, Process
from bench.progress import progress
from bench.settings import CLASSES, FROM_FILES, OURS, OURS_ONE, BenchSettings
from bench.workloads import Workload

_WARM_UP = (2, 4)  # queries and documents of each
_FEW_PAIRS = 16  # enough to tell about how long a pair takes
_TRIAL_PAIRS = 64  # two batches of the largest size tried; fewer where that would take too long
_TRIALS_SHARE = 0.5  # what a contender's trials may take of its budget
# Work in which pairs or batches have nothing to do with one another: fewer are not slower each.
_ALONE = ("one_by_one", "padded", "sorted_padded")
# With a time limit, an answer may take so many times the whole budget, and some more.
_PATIENCE, _PATIENCE_S = 5.0, 300.0


class Peers:
    """The implementations' processes: started when first wanted, all kept, or one at a time."""

    def __init__(self, settings: BenchSettings, checkpoint: Path) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._processes: dict[str, Process] = {}
        self._failures: dict[str, PeerFailed] = {}

    def get(self, name: str) -> Process:
        """A live process of the peer. Raises PeerFailed, the same again for one that cannot run."""
        if name in self._failures:
            raise self._failures[name]
        if name not in self._processes or not self._processes[name].is_alive:
            if self._settings.alone:
                self.close()
            try:
                self._processes[name] = self._started(name)
            except PeerFailed as failure:
                self._failures[name] = failure
                raise
        return self._processes[name]

    def close(self, patience_s: float = END_TIMEOUT_S) -> None:
        for process in self._processes.values():
            process.close(patience_s)
        self._processes.clear()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """An interrupted one does not wait for what its peers are computing."""
        self.close(0 if error else END_TIMEOUT_S)

    def _started(self, name: str) -> Process:
        settings = self._settings
        if name in FROM_FILES and not settings.has_files:
            raise PeerFailed(f"it reads weights from files: give --model, not {settings.preset}")
        return Process(
            CLASSES[name],
            settings.of_peer(name, self._checkpoint),
            settings.log(name),
            settings.peer_python.get(name, sys.executable),
        )


@dataclass(slots=True)
class Contender:
    """One implementation on one workload. A failure is kept as its own, and nothing raises.

    budget_s: seconds for all its rounds, or None. `timed` is the workload or a part of it.
    """

    name: str
    workload: Workload
    budget_s: float | None = None
    timed: Workload = field(init=False)
    label: str = ""
    work: str = "one_by_one"
    versions: dict[str, str] = field(default_factory=dict)
    batch_size: int | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None
    _warmed: Process | None = None

    def __post_init__(self) -> None:
        self.timed = self.workload
        self.label = self.name

    @property
    def seconds(self) -> float:
        return statistics.median(run["seconds"] for run in self.runs)

    @property
    def is_done(self) -> bool:
        """Failed, or another round would go over the budget; one round is always made."""
        spent = sum(run["seconds"] for run in self.runs)
        is_over = self.budget_s and self.runs and spent + self.seconds > self.budget_s
        return self.failure is not None or bool(is_over)

    def prepare(self, peers: Peers, rounds: int) -> None:
        """Start and warm up; choose the batch size, and how much of the workload there is time
        for.
        """
        try:
            process = self._warm(peers)
            introduction = process.introduction
            self.label, self.work = introduction["label"], introduction["work"]
            self.versions, sizes = introduction["versions"], introduction["batch_sizes"]
            can_shorten = self.budget_s is not None and self.work.startswith(_ALONE)
            if sizes or can_shorten:
                self._choose(process, sizes, rounds if can_shorten else None)
        except PeerFailed as failure:
            self.failure = str(failure)

    def run(self, peers: Peers) -> None:
        try:
            self.runs.append(self._ask(self._warm(peers), self.timed))
        except PeerFailed as failure:
            self.failure = str(failure)

    def scores(self) -> list[dict[int, float]]:
        """The scores of each run, by the pair's place in the whole workload."""
        return [
            {
                place: score
                for places, scores in zip(self.timed.places, run["result"], strict=True)
                for place, score in zip(places, scores, strict=True)
            }
            for run in self.runs
        ]

    def _warm(self, peers: Peers) -> Process:
        process = peers.get(self.name)
        if process is not self._warmed:
            self._ask(process, self.workload.head(*_WARM_UP))
            self._warmed = process
        return process

    def _choose(self, process: Process, sizes: Sequence[int], rounds: int | None) -> None:
        """The best batch size on a part of the workload; with rounds as many pairs as fit the
        budget, but never fewer than a batch or a few.
        """
        part = self.workload.part(self._trial_pairs(process, sizes) if sizes else _FEW_PAIRS)
        seconds: dict[int | None, float] = {}
        for size in (*sizes,) or (None,):
            self.batch_size = size
            seconds[size] = self._ask(process, part)["seconds"] / part.num_pairs
        self.batch_size = min(seconds, key=lambda size: seconds[size])
        if sizes:
            self.work = f"{self.work}:{self.batch_size}"
            self.label = f"{self.label} of {self.batch_size}"
        if rounds is not None and self.budget_s is not None:
            fitting = int(self.budget_s / (seconds[self.batch_size] * rounds))
            fewest = min(max(_FEW_PAIRS, self.batch_size or 0), self.workload.num_pairs)
            self.timed = self.workload.part(max(fitting, fewest))

    def _trial_pairs(self, process: Process, sizes: Sequence[int]) -> int:
        if self.budget_s is None:
            return _TRIAL_PAIRS
        self.batch_size = min(sizes)
        few = self.workload.part(_FEW_PAIRS)
        seconds_of_a_pair = self._ask(process, few)["seconds"] / few.num_pairs
        fitting = int(_TRIALS_SHARE * self.budget_s / seconds_of_a_pair / len(sizes))
        return max(_FEW_PAIRS, min(fitting, _TRIAL_PAIRS))

    def _ask(self, process: Process, workload: Workload) -> dict[str, Any]:
        timeout_s = None if self.budget_s is None else _PATIENCE * self.budget_s + _PATIENCE_S
        answer = process.ask("score", workload.sets, self.batch_size, timeout_s)
        expected = [len(one["documents"]) for one in workload.sets]
        if [len(scores) for scores in answer["result"]] != expected:
            raise PeerFailed("it answered with another number of scores than there are pairs")
        return answer


def measure(
    workloads: Sequence[Workload], settings: BenchSettings, checkpoint: Path
) -> list[Contender]:
    """Every implementation on every workload, each prepared at its first round."""
    names = [OURS, OURS_ONE, *settings.peers]
    budget = settings.time_limit_s and settings.time_limit_s / len(names)
    contenders = [Contender(name, each, budget) for name in names for each in workloads]
    with Peers(settings, checkpoint) as peers:
        for number, contender in schedule(contenders, settings.rounds, settings.alone):
            name = contender.workload.name
            if number == 0:
                progress(f"{name}: {contender.name} starts and warms up")
                contender.prepare(peers, settings.rounds)
            if not contender.is_done:
                progress(f"{name}: {contender.label}, round {number + 1} of {settings.rounds}")
                contender.run(peers)
                if contender.runs and number == 0:
                    rate = contender.timed.num_pairs / contender.seconds
                    progress(f"{name}: {contender.label}: {rate:,.1f} pairs/s at first")
    return contenders


def schedule(
    contenders: Sequence[Contender], rounds: int, alone: bool
) -> Iterator[tuple[int, Contender]]:
    """(round, contender): every peer in turn in each round, another one first each time.

    Workload after workload; with `alone`, where a change of peer loads it again, round after round.
    """
    names = list(dict.fromkeys(contender.name for contender in contenders))
    workloads = list(dict.fromkeys(contender.workload.name for contender in contenders))

    def place(turn: tuple[int, Contender]) -> tuple[int, ...]:
        number, contender = turn
        peer = (names.index(contender.name) - number) % len(names)
        workload = workloads.index(contender.workload.name)
        return (number, peer, workload) if alone else (workload, number, peer)

    yield from sorted(((n, each) for n in range(rounds) for each in contenders), key=place)
