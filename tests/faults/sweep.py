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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from shardrank.jobs.outputs.lease import _born as born
from shardrank.jobs.outputs.lease import holder_of, is_known_dead
from shardrank.jobs.storage import Location, list_files, read_bytes
from tests.faults.sweep_cluster import descendants
from tests.faults.sweep_job import TINY, UNIT_PAIRS, Job, Store, read_rows
from tests.faults.sweep_place import ROOT, Place

MAX_REDONE = 0.05
"""Of finished work, as the share that may be done again."""
ENDS_WITHIN_S = 20.0
"""After SIGTERM or Ctrl-C, on a machine that is busy with other things."""
PATIENCE_S = 200.0
"""For anything at all to happen, before it counts as a hang."""


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


def draw(rng: random.Random, job: Job, kinds: Sequence[str], by_delay: bool = False) -> list[Point]:
    """Points at random moments: file counts that only rise, or seconds. A node joins by seconds: it
    may be what the job waits for.
    """
    high = int(len(job.scores) * 0.9)
    counts = iter(
        sorted(
            rng.randrange(high) + (len(job.parts) if kind in WHILE_REGROUPING else 0)
            for kind in kinds
        )
    )
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
    query: int
    document: int
    num_pairs: int

    @classmethod
    def parse(cls, line: str) -> "Note":
        at, pid, what, *about = line.split("\t")
        numbers = [int(each.split()[-1]) for each in about] or [-1, -1, 0]
        return cls(float(at), int(pid), what, *numbers)


@dataclass(slots=True)
class Kill:
    """One kill point as it came about; `finished`: the files of that moment, with their times."""

    point: Point
    at: float
    finished: dict[str, int]
    pid: int | None = None
    ended_s: float | None = None

    def line(self, run: "Run") -> dict[str, Any]:
        done, again = self.num_done(run.job), self.redone(run)
        return {
            "kill": self.point.kind,
            "moment": self.point.moment,
            "finished": len(self.finished),
            "of": run.job.num_files,
            "redone": round(again / done, 4) if done else 0.0,
            "rescored_of_all": round(rescored(run), 4),
            "seconds": round(time.time() - self.at, 1),
        } | ({} if self.ended_s is None else {"ended_s": round(self.ended_s, 1)})

    def num_done(self, job: Job) -> int:
        """Pairs whose scores were in a file when this kill came."""
        return sum(file in self.finished for file in job.scored) * UNIT_PAIRS

    def redone(self, run: "Run") -> int:
        """Those of them that were scored again."""
        return sum(
            note.num_pairs
            for note in run.notes()
            if note.what == "scored"
            and note.at > self.at
            and run.job.file_of(note.query, note.document) in self.finished
        )


@dataclass(slots=True)
class Run:
    """One job to its end, however many drivers that takes."""

    job: Job
    place: Place
    directory: Path
    rng: random.Random
    store: Store | None = None
    driver: subprocess.Popen[bytes] | None = None
    kills: list[Kill] = field(default_factory=list)
    num_drivers: int = 0
    event_at: float = 0.0
    seen: dict[int, str] = field(default_factory=dict)
    orphans: dict[int, str | None] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """Of the output: in the run's own directory, or under its name in the store."""
        if self.store is None:
            return str(self.directory / "out")
        return self.store.uri(f"{self.directory.name}/out")

    @property
    def output(self) -> Location:
        return Location.parse(self.uri)

    @property
    def look_every_s(self) -> float:
        return 0.02 if self.output.is_local else 0.2

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
            *("rerank", *self.job.inputs, f"--output={self.uri}", f"--model={TINY}"),
            *("--threads=1", f"--unit-pairs={UNIT_PAIRS}"),
            *([f"--address={self.place.address}"] if self.place.address else []),
        ]

    @property
    def command(self) -> Sequence[str]:
        own = ["-m", "tests.faults.sweep_driver", str(self.log)]
        program = own if self.job.engine == "stand-in" else ["-m", "shardrank.cli"]
        return [sys.executable, *program, *self.arguments]

    @property
    def root(self) -> int:
        assert self.driver
        return self.place.root or self.driver.pid

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        command = self.command
        self.num_drivers += 1
        with self.errors.open("wb") as stream:
            self.driver = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,  # a process group, as a terminal's Ctrl-C ends it
            )
        self.event_at = time.time()

    def is_running(self) -> bool:
        assert self.driver
        return self.driver.poll() is None

    def has_ended(self) -> bool:
        """Looks at the files too, so that one that is written again and then removed is seen."""
        self.finished()
        return not self.is_running()

    def finished(self) -> dict[str, int]:
        """The score files and parts that are there, and when each was written: on an object store,
        to the second.
        """
        found = {
            place.path.removeprefix(f"{self.output.path}/"): info.mtime_ns
            for place, info in list_files(self.output)
            if place.name.startswith("part-")
        }
        self.newest |= found
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

    def wait(self, until: Callable[[], Any], every_s: float | None = None) -> Any:
        """What `until` returns, as soon as it is true; None if the driver ended before."""
        every_s = self.look_every_s if every_s is None else every_s
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := until():
                return found
            if not self.is_running():
                return until() or None
            time.sleep(every_s)
        raise AssertionError(f"nothing for {PATIENCE_S:.0f} s, {self.state()}\n{self.said()}")

    def state(self) -> str:
        return f"{len(self.finished())}/{self.job.num_files} files"

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
        run.wait(run.has_ended)
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
    finished = run.finished()
    kill = Kill(point, time.time(), finished, pid)
    run.kills.append(kill)
    return kill


def kill_worker(find: Callable[[Run], int | None], run: Run, point: Point) -> bool:
    """A process that is caught in the act: it is stopped, and killed if it still does that."""
    pid = run.wait(lambda: find(run), every_s=0.001)
    if pid is None:
        return False
    note_kill(run, point, pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def titled(title: str | tuple[str, ...], run: Run) -> int | None:
    """Any process with this title, or one of these, stopped and looked at again."""
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
    """And the same command again, which has not to wait until the dead one's lease expires."""
    if not run.is_running():
        return False
    assert run.driver
    note_kill(run, point, run.driver.pid)
    run.kill_driver()
    holder = holder_of(run.output)
    assert holder is None or is_known_dead(holder), holder
    run.start()
    return True


def interrupt(number: int, is_group: bool, run: Run, point: Point) -> bool:
    """The driver ends by itself, says how to go on, and the same command goes on."""
    assert run.driver
    held = run.output.child("_RUNNING")
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
    words = shlex.split(said.splitlines()[-1])
    assert words[-len(run.arguments) :] == run.arguments, said
    assert not held.exists()
    kept = run.finished()
    assert {name: kept.get(name) for name in kill.finished} == kill.finished
    if kill.finished or run.output.child("manifest.json").exists():  # it had only just begun
        assert read_manifest(run)["status"] == "running"
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
WRITE = ("ray::write_unit", "ray::write_by_document")

KINDS: dict[str, Callable[[Run, Point], bool]] = {
    "actor": functools.partial(kill_worker, functools.partial(titled, SCORE)),
    "actor that scores": functools.partial(kill_worker, functools.partial(noted, "score")),
    "worker that reads": functools.partial(kill_worker, functools.partial(begun, PREPARE)),
    "worker that preprocesses": functools.partial(kill_worker, functools.partial(noted, "prepare")),
    "worker that writes": functools.partial(kill_worker, functools.partial(titled, WRITE)),
    "worker that regroups": functools.partial(
        kill_worker, functools.partial(titled, "ray::regroup")
    ),
    "worker that verifies": functools.partial(
        kill_worker, functools.partial(titled, "ray::verify_units")
    ),
    "attempt log": functools.partial(kill_worker, functools.partial(titled, "ray::AttemptLog")),
    "driver": kill_driver,
    "driver while regrouping": kill_driver,
    "SIGTERM": functools.partial(interrupt, signal.SIGTERM, False),
    "SIGTERM while regrouping": functools.partial(interrupt, signal.SIGTERM, False),
    "SIGINT": functools.partial(interrupt, signal.SIGINT, False),
    "Ctrl-C": functools.partial(interrupt, signal.SIGINT, True),
    "GPU node": functools.partial(kill_nodes, ["gpu-a"]),
    "all GPU nodes": functools.partial(kill_nodes, ["gpu-a", "gpu-b"]),
    "CPU node": functools.partial(kill_nodes, ["cpu"]),
    "joins": join_nodes,
}

WHILE_REGROUPING = {kind for kind in KINDS if "regroup" in kind}


# What must hold


def check_output(run: Run) -> None:
    """Row for row what an undisturbed run gives, and nothing beside it."""
    different = left(run) ^ {"_SUCCESS", "manifest.json", "scores", *run.job.scores}
    assert not different, f"left over or missing: {sorted(different)}"
    manifest = read_manifest(run)
    assert (manifest["status"], manifest["num_failed"]) == ("finished", 0)
    assert_same_rows(read_rows(run.output, run.job.scores), run.job)
    for kill in run.kills:
        again = [name for name, when in kill.finished.items() if run.newest[name] != when]
        assert len(again) <= num_in_hand(kill), f"{kill.point}: written again: {again}"


def left(run: Run) -> set[str]:
    """All files and directories, hidden ones too."""
    selector = fs.FileSelector(run.output.path, recursive=True)
    found = run.output.filesystem.get_file_info(selector)
    return {info.path.removeprefix(f"{run.output.path}/") for info in found}


def num_in_hand(kill: Kill) -> int:
    """Files that may be written again: the one that a killed writer had not yet told of."""
    return 1 if kill.point.kind == "worker that writes" else 0


def read_manifest(run: Run) -> dict[str, Any]:
    return json.loads(read_bytes(run.output.child("manifest.json")))


def assert_same_rows(rows: pa.Table, job: Job) -> None:
    """To the last bit, the real model's too: what shares its batches is settled by the input."""
    names = ["query_id", "doc_id", "score", "rank"]
    assert rows.select(names) == job.expected.select(names)
    assert rows == job.expected


def check_redone(run: Run) -> None:
    for kill in run.kills:
        allowed = MAX_REDONE * kill.num_done(run.job)
        assert kill.redone(run) <= allowed, f"{kill.point}: finished work was redone"


def rescored(run: Run) -> float:
    """All pairs that were scored more than once, finished or in flight, as a share of all."""
    num_scored = sum(note.num_pairs for note in run.notes() if note.what == "scored")
    return max(0.0, num_scored / run.job.num_pairs - 1)
