"""All contenders on all workloads: timed in rounds that take turns, each prepared at its first."""

from collections.abc import Iterator, Sequence

from bench.contenders import Contender
from bench.pool import PeerPool
from bench.progress import Progress
from bench.settings import OURS, OURS_ONE, BenchSettings
from bench.workloads import Workload


def measure(
    workloads: Sequence[Workload], settings: BenchSettings, pool: PeerPool, progress: Progress
) -> list[Contender]:
    """Every implementation on every workload. Failures are the contenders' own; nothing raises."""
    names = [OURS, OURS_ONE, *settings.peers]
    budget = settings.time_limit_s and settings.time_limit_s / len(names)
    contenders = [
        Contender(name, workload, settings.workdir / "workloads", budget)
        for name in names
        for workload in workloads
    ]
    for number, contender in schedule(contenders, settings.rounds, settings.alone):
        name = contender.workload.name
        if number == 0:
            progress(f"{name}: {contender.name} starts and warms up")
            contender.prepare(pool, settings.rounds)
        if not contender.is_done:
            progress(f"{name}: {contender.label}, round {number + 1} of {settings.rounds}")
            contender.run(pool)
            if contender.runs and number == 0:
                rate = contender.timed.num_pairs / contender.seconds
                progress.lasting(f"{name}: {contender.label}: {rate:,.1f} pairs/s at first")
    return contenders


def schedule(
    contenders: Sequence[Contender], rounds: int, alone: bool
) -> Iterator[tuple[int, Contender]]:
    """(round, contender): every peer in turn in each round, another one first each time.

    Workload after workload; with `alone`, where a change of peer loads it again, round after round.
    """
    names = list(dict.fromkeys(contender.name for contender in contenders))
    workloads = list(dict.fromkeys(contender.workload.name for contender in contenders))

    def place(number: int, contender: Contender) -> tuple[int, ...]:
        turn = (names.index(contender.name) - number) % len(names)
        workload = workloads.index(contender.workload.name)
        return (number, turn, workload) if alone else (workload, number, turn)

    turns = [(number, contender) for number in range(rounds) for contender in contenders]
    yield from sorted(turns, key=lambda turn: place(*turn))
