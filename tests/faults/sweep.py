"""A job whose processes and nodes are killed at random moments, and what must hold after each kill.

Victims are sought below one process alone, the one that started the Ray in question: other Rays on
the machine are left in peace.
"""

import functools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sweep_engine
from job_cases import candidate, plan_of, query_row, run_inline, text, write_sets
from sweep_cluster import descendants

from actors.config import RerankerConfig
from jobs.engine import Engine
from jobs.lease import _born as born

FAULTS = Path(__file__).parent
TINY = FAULTS.parent / "golden" / "tiny"
CONFIG = RerankerConfig(model=str(TINY), num_threads=1)

QUERIES_OF_UNIT = 2
NUM_DOCUMENTS = 40
UNIT_PAIRS = QUERIES_OF_UNIT * NUM_DOCUMENTS

MAX_REDONE = 0.05
"""Of finished work, as the share that may be done again."""
ENDS_WITHIN_S = 20.0
"""After SIGTERM or Ctrl-C, on a machine that is busy with other things."""
PATIENCE_S = 200.0
"""For anything at all to happen, before it counts as a hang."""


@dataclass(frozen=True, slots=True)
class Job:
    """An input and the output of an undisturbed run."""

    sets: str
    expected: pa.Table
    names: tuple[str, ...]
    engine: str = "stand-in"

    @property
    def num_units(self) -> int:
        return len(self.names)


def make_job(directory: Path, num_units: int, engine: Engine | None = None) -> Job:
    """`engine`: the real one, which the command line itself takes; otherwise the sweep's own."""
    directory.mkdir(parents=True, exist_ok=True)
    # With the sweep's engine a chunk's rows take more than Ray keeps beside its owner.
    long = 3_000 if engine is None else 1
    documents = [
        candidate(f"d{i}-{str(i % 10) * long}", text(f"document {i}"), i + 1)
        for i in range(NUM_DOCUMENTS)
    ]
    queries = [query_row(i, documents, f"query {i}") for i in range(num_units * QUERIES_OF_UNIT)]
    sets = write_sets(directory / "sets.parquet", queries, QUERIES_OF_UNIT)
    name = "stand-in" if engine is None else "real"
    engine = engine or sweep_engine.make_engine(None)
    run_inline(plan_of(sets, UNIT_PAIRS), directory / "undisturbed", engine=engine, config=CONFIG)
    names = tuple(f"part-{i:06}.parquet" for i in range(num_units))
    return Job(sets, read_rows(directory / "undisturbed", names), names, name)


def read_rows(output: Path, names: Sequence[str]) -> pa.Table:
    tables = [pq.read_table(output / "scores" / name) for name in names]
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


# Where


@dataclass(frozen=True, slots=True)
class Place:
    """A Ray that jobs join, and the process that all of it descends from.

    Without an address each run starts a Ray of its own, which descends from its driver.
    """

    address: str | None = None
    root: int | None = None
    cluster: "Cluster | None" = None


class Cluster:
    """A simulated cluster in a process of its own (sweep_cluster.py)."""

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        script, quick = FAULTS / "sweep_cluster.py", {"RAY_health_check_period_ms": "1000"}
        self.process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | quick,
            start_new_session=True,
        )
        self.address: str = self._answer()["address"]
        self.missing: list[str] = []

    def kill(self, name: str) -> None:
        self._order("kill", name)
        self.missing.append(name)

    def add(self, name: str) -> None:
        self._order("add", name)
        self.missing.remove(name)

    def join_missing(self) -> None:
        for name in list(self.missing):
            self.add(name)

    def _order(self, *words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the simulated cluster ended"
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        kill_below(self.process.pid)
        self.process.kill()


@contextmanager
def simulated(nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[Place]:
    cluster = Cluster(nodes)
    try:
        yield Place(cluster.address, cluster.process.pid, cluster)
    finally:
        cluster.close()


def kill_below(pid: int) -> None:
    for child in descendants(pid):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


# When


@dataclass(frozen=True, slots=True)
class Point:
    """What is killed, and when: after so many files, or so many seconds after what came before."""

    kind: str
    num_files: int | None = None
    delay_s: float | None = None

    @property
    def moment(self) -> str:
        if self.num_files is not None:
            return f"{self.num_files} files"
        return f"{self.delay_s:.1f} s"


def draw(
    rng: random.Random, num_units: int, kinds: Sequence[str], by_delay: bool = False
) -> list[Point]:
    """Points at random moments: file counts that only rise, or seconds. A node joins by seconds: it
    may be what the job waits for.
    """
    counts = iter(sorted(rng.randrange(int(num_units * 0.9)) for _ in kinds))
    return [
        Point(kind, delay_s=rng.uniform(0, MAX_DELAY_S))
        if by_delay or kind == "joins"
        else Point(kind, num_files=next(counts))
        for kind in kinds
    ]


MAX_DELAY_S = 12.0


# What happened


@dataclass(frozen=True, slots=True)
class Note:
    """A line of the engine's log."""

    at: float
    pid: int
    what: str
    query: int | None
    num_pairs: int

    @classmethod
    def parse(cls, line: str) -> "Note":
        at, pid, what, text, *num_pairs = line.split("\t")
        query = int(text.removeprefix("query ")) if text.startswith("query ") else None
        return cls(float(at), int(pid), what, query, int(num_pairs[0]) if num_pairs else 0)

    @property
    def file(self) -> str:
        assert self.query is not None
        return f"part-{self.query // QUERIES_OF_UNIT:06}.parquet"


@dataclass(slots=True)
class Kill:
    """One kill point as it came about; `finished`: the files of that moment, with their times."""

    point: Point
    at: float
    finished: dict[str, int]
    pid: int | None = None
    ended_s: float | None = None

    def line(self, run: "Run") -> dict[str, Any]:
        done, again = len(self.finished) * UNIT_PAIRS, self.redone(run.notes())
        return {
            "kill": self.point.kind,
            "moment": self.point.moment,
            "finished": len(self.finished),
            "of": run.job.num_units,
            "redone": round(again / done, 4) if done else 0.0,
            "rescored_of_all": round(rescored(run), 4),
            "seconds": round(time.time() - self.at, 1),
        } | ({} if self.ended_s is None else {"ended_s": round(self.ended_s, 1)})

    def redone(self, notes: Sequence[Note]) -> int:
        """Pairs that were scored again although their file was there when this kill came."""
        return sum(
            note.num_pairs
            for note in notes
            if note.what == "scored" and note.at > self.at and note.file in self.finished
        )


@dataclass(slots=True)
class Run:
    """One job to its end, however many drivers that takes."""

    job: Job
    place: Place
    directory: Path
    rng: random.Random
    driver: subprocess.Popen[bytes] | None = None
    kills: list[Kill] = field(default_factory=list)
    num_drivers: int = 0
    event_at: float = 0.0
    seen: dict[int, str] = field(default_factory=dict)
    orphans: dict[int, str | None] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.directory / "out"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def errors(self) -> Path:
        """What the last driver said on stderr."""
        return self.directory / f"driver-{self.num_drivers}"

    @property
    def arguments(self) -> list[str]:
        return [
            *("rerank", self.job.sets, f"--output={self.output}", f"--model={TINY}", "--threads=1"),
            f"--unit-pairs={UNIT_PAIRS}",
            *([f"--address={self.place.address}"] if self.place.address else []),
        ]

    @property
    def root(self) -> int:
        assert self.driver
        return self.place.root or self.driver.pid

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        own = [str(FAULTS / "sweep_driver.py"), str(self.log)]
        program = own if self.job.engine == "stand-in" else ["-m", "jobs.cli"]
        self.num_drivers += 1
        with self.errors.open("wb") as stream:
            self.driver = subprocess.Popen(
                [sys.executable, *program, *self.arguments],
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,  # a process group, as a terminal's Ctrl-C ends it
            )
        self.event_at = time.time()

    def is_running(self) -> bool:
        assert self.driver
        return self.driver.poll() is None

    def finished(self) -> dict[str, int]:
        """The score files that are there, and when each was written."""
        found = {}
        for path in (self.output / "scores").glob("part-*"):
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_mtime_ns
        return found

    def notes(self) -> list[Note]:
        return [Note.parse(line) for line in self.log.read_text().splitlines()]

    def titles(self) -> dict[int, str]:
        """What every process of this Ray calls itself."""
        found = {}
        for pid in descendants(self.root):
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().decode().strip("\0 ")
        return found

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def wait(self, until: Callable[[], Any], every_s: float = 0.02) -> Any:
        """What `until` returns, as soon as it is true; None if the driver ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := until():
                return found
            if not self.is_running():
                return until() or None
            time.sleep(every_s)
        raise AssertionError(f"nothing for {PATIENCE_S:.0f} s, {self.state()}\n{self.said()}")

    def state(self) -> str:
        return f"{len(self.finished())}/{self.job.num_units} files"

    def kill_driver(self) -> None:
        """A Ray of its own ends itself then, a little later."""
        assert self.driver
        if not self.place.address:
            self.orphans |= {pid: born(pid) for pid in descendants(self.driver.pid)}
        self.driver.kill()
        self.driver.wait()

    def close(self) -> None:
        if self.driver is not None and self.is_running():
            self.kill_driver()
        for pid, when in self.orphans.items():
            if when is not None and born(pid) == when:
                os.kill(pid, signal.SIGKILL)


# Kills


def sweep(run: Run, points: Sequence[Point]) -> list[dict[str, Any]]:
    """The job with these kills, started again where they end it, to its verified end."""
    try:
        run.start()
        for point in points:
            strike(run, point)
        run.wait(lambda: not run.is_running())
        assert run.driver and run.driver.returncode == 0, run.said()
        check_output(run)
        if run.job.engine == "stand-in":
            check_redone(run)
        lines = [kill.line(run) for kill in run.kills]
        for line in lines:
            print(json.dumps(line))
        return lines
    finally:
        run.close()


def strike(run: Run, point: Point) -> None:
    """Wait for the moment and do it; what came too late for this run is not counted as a kill."""
    if point.num_files is not None:
        reached = run.wait(lambda: len(run.finished()) >= point.num_files)
    else:
        reached = run.wait(lambda: time.time() >= run.event_at + point.delay_s)
    if reached and KINDS[point.kind](run, point):
        run.event_at = time.time()


def note_kill(run: Run, point: Point, pid: int | None = None) -> Kill:
    kill = Kill(point, time.time(), run.finished(), pid)
    run.kills.append(kill)
    return kill


def kill_worker(find: Callable[[Run], int | None], run: Run, point: Point) -> bool:
    """A process that is caught in the act: it is stopped, and killed if it still does that."""
    pid = run.wait(lambda: find(run), every_s=0)
    if pid is None:
        return False
    note_kill(run, point, pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def titled(title: str, run: Run) -> int | None:
    """Any process with this title, stopped and looked at again."""
    pids = [pid for pid, name in run.titles().items() if name.startswith(title)]
    if not pids:
        return None
    pid = run.rng.choice(pids)
    with suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        if Path(f"/proc/{pid}/cmdline").read_text().startswith(title):
            return pid
        os.kill(pid, signal.SIGCONT)
    return None


def begun(title: str, run: Run) -> int | None:
    """A process that had another title when it was last looked at."""
    before, run.seen = run.seen, run.titles()
    for pid, name in run.seen.items():
        if before and name.startswith(title) and not before.get(pid, "").startswith(title):
            return pid
    return None


def noted(what: str, run: Run) -> int | None:
    """The process whose line is the log's last, if it says that it just began `what`."""
    notes = run.notes()
    if not notes or notes[-1].what != what or notes[-1].pid not in descendants(run.root):
        return None
    return notes[-1].pid


def kill_driver(run: Run, point: Point) -> bool:
    """And the same command again."""
    if not run.is_running():
        return False
    assert run.driver
    note_kill(run, point, run.driver.pid)
    run.kill_driver()
    run.start()
    return True


def interrupt(number: int, is_group: bool, run: Run, point: Point) -> bool:
    """The driver ends by itself, says how to go on, and the same command goes on."""
    assert run.driver
    held = run.output / "_RUNNING"
    if not run.wait(held.exists) or not run.is_running():
        return False
    kill = note_kill(run, point, run.driver.pid)
    (os.killpg if is_group else os.kill)(run.driver.pid, number)
    code = run.driver.wait(PATIENCE_S)
    if code == 0:  # it was past its last row
        run.kills.pop()
        return False
    kill.ended_s = time.time() - kill.at
    said = run.said()
    assert code == 130, f"{point.kind}: exit code {code}\n{said}"
    assert kill.ended_s < ENDS_WITHIN_S, f"{point.kind}: it took {kill.ended_s:.1f} s to end"
    assert said.splitlines()[-2].endswith("what is finished is kept, go on with:"), said
    assert shlex.split(said.splitlines()[-1]) == ["shardrank", *run.arguments], said
    assert not held.exists()
    kept = run.finished()
    assert {name: kept.get(name) for name in kill.finished} == kill.finished
    assert json.loads((run.output / "manifest.json").read_text())["status"] == "running"
    run.start()
    return True


def kill_nodes(names: Sequence[str], run: Run, point: Point) -> bool:
    assert run.place.cluster
    if not run.is_running():
        return False
    note_kill(run, point)
    for name in names:
        run.place.cluster.kill(name)
    return True


def join_nodes(run: Run, point: Point) -> bool:
    """Every node that is missing joins again, as a new one."""
    assert run.place.cluster
    run.place.cluster.join_missing()
    return True


SCORE = "ray::MapWorker(MapBatches(Score))"
PREPARE = "ray::MapBatches(prepare_unit)"

KINDS: dict[str, Callable[[Run, Point], bool]] = {
    "actor": functools.partial(kill_worker, functools.partial(titled, SCORE)),
    "actor that scores": functools.partial(kill_worker, functools.partial(noted, "score")),
    "worker that reads": functools.partial(kill_worker, functools.partial(begun, PREPARE)),
    "worker that preprocesses": functools.partial(kill_worker, functools.partial(noted, "prepare")),
    "worker that writes": functools.partial(
        kill_worker, functools.partial(titled, "ray::write_unit")
    ),
    "worker that verifies": functools.partial(
        kill_worker, functools.partial(titled, "ray::verify_units")
    ),
    "attempt log": functools.partial(kill_worker, functools.partial(titled, "ray::AttemptLog")),
    "driver": kill_driver,
    "SIGTERM": functools.partial(interrupt, signal.SIGTERM, False),
    "SIGINT": functools.partial(interrupt, signal.SIGINT, False),
    "Ctrl-C": functools.partial(interrupt, signal.SIGINT, True),
    "GPU node": functools.partial(kill_nodes, ["gpu-a"]),
    "all GPU nodes": functools.partial(kill_nodes, ["gpu-a", "gpu-b"]),
    "CPU node": functools.partial(kill_nodes, ["cpu"]),
    "joins": join_nodes,
}


# What must hold


def check_output(run: Run) -> None:
    """Row for row what an undisturbed run gives, and nothing beside it."""
    assert sorted(path.name for path in (run.output / "scores").iterdir()) == list(run.job.names)
    left = {path.name for path in run.output.iterdir()}
    assert left == {"_SUCCESS", "manifest.json", "scores"}
    manifest = json.loads((run.output / "manifest.json").read_text())
    assert (manifest["status"], manifest["num_failed"]) == ("finished", 0)
    assert_same_rows(read_rows(run.output, run.job.names), run.job)
    now = run.finished()
    for kill in run.kills:
        rewritten = [name for name, when in kill.finished.items() if now[name] != when]
        assert not rewritten, f"finished before {kill.point}, and written again: {rewritten}"


def assert_same_rows(rows: pa.Table, job: Job) -> None:
    ids = ["query_id", "doc_id"]
    if job.engine == "stand-in":
        assert rows.select([*ids, "score", "rank"]) == job.expected.select([*ids, "score", "rank"])
        assert rows == job.expected
        return
    # The real model's last bits depend on what shares a batch, which a kill may change.
    found, expected = rows.sort_by(SORT), job.expected.sort_by(SORT)
    assert found.select(ids) == expected.select(ids)
    differences = zip(found["score"].to_pylist(), expected["score"].to_pylist(), strict=True)
    assert max(abs(mine - theirs) for mine, theirs in differences) < 1e-5


SORT = [("query_id", "ascending"), ("doc_id", "ascending")]


def check_redone(run: Run) -> None:
    notes = run.notes()
    for kill in run.kills:
        done = len(kill.finished) * UNIT_PAIRS
        assert kill.redone(notes) <= MAX_REDONE * done, f"{kill.point}: finished work was redone"


def rescored(run: Run) -> float:
    """All pairs that were scored more than once, finished or in flight, as a share of all."""
    num_scored = sum(note.num_pairs for note in run.notes() if note.what == "scored")
    return max(0.0, num_scored / (run.job.num_units * UNIT_PAIRS) - 1)
