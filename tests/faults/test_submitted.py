"""A submitted job whose processes, head and followers go away: nothing is lost, and each end says
how to go on in words that do.
"""

import os
import re
import secrets
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.faults import sweep
from tests.faults.sweep import Run, draw
from tests.faults.sweep_cluster import descendants
from tests.faults.sweep_job import TINY, make_job
from tests.faults.sweep_place import ROOT, Place, simulated
from tests.faults.test_kill_sweep import random_of
from tests.support.job_cases import score_rows, text_rows, write_sets
from tests.support.ray_head import Head, free_ports, processes_of, ray_head, start_head

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
SUBMIT = (sys.executable, "-m", "shardrank.cli", "submit")


class Following:
    """A `shardrank submit` that follows; what it says, line by line."""

    def __init__(self, head: Head, *words: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*SUBMIT, *words],
            cwd=ROOT,
            env=head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, pattern: str) -> str:
        """What the first line says that has the pattern."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(pattern, line):
                return found[0]
        raise AssertionError(f"{pattern} not in:\n" + "\n".join(self.lines))

    def end(self) -> tuple[int, list[str]]:
        """Its exit code, and the words of the last command that it says, after `shardrank`."""
        assert self.process.stdout
        self.lines += [line.rstrip() for line in self.process.stdout]
        commands = [line for line in self.lines if line.startswith("  ") and " submit " in line]
        words = shlex.split(commands[-1]) if commands else []
        return self.process.wait(60), words[words.index("submit") + 1 :] if words else []


def test_a_job_goes_on_after_a_stop_a_kill_and_the_death_of_its_head(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(4_000, 8))
    arguments = [sets, f"--output={tmp_path / 'out'}", f"--model={TINY}", "--threads=1"]
    with ray_head() as head:
        folder = head.environment["RAY_TMPDIR"]
        running = r"[1-9][\d,]*/[\d,]+ pairs · .* pairs/s"
        first = Following(head, "rerank", *arguments, "--unit-pairs=400")
        job = first.until(r"rerank-\d{8}-\d{6}-\w+")
        first.until(running)
        again = head.run(*SUBMIT, "resume", job)
        assert again.returncode == 2 and f"{job} is running; follow it with:" in again.stdout

        stopped = head.run(*SUBMIT, "stop", job)
        assert stopped.returncode == 0, stopped.stdout
        code, words = first.end()
        assert (code, words) == (130, ["resume", job]), first.lines
        assert any("interrupted; what is finished is kept" in line for line in first.lines)

        second = Following(head, *words)
        second.until(running)
        kill(folder, lambda line: "shardrank rerank" in line)
        code, words = second.end()
        assert code == 1 and "was killed on the head, by signal 9" in "".join(second.lines)

        third = Following(head, *words)
        third.until(running)
        kill(folder, lambda line: "shardrank.cli submit" not in line)
        third.until("does not answer, asking again")
        start_head(Path(folder), head.ports)
        code, words = third.end()
        assert code == 1 and "was started anew: its head died" in "".join(third.lines)
        assert words[0] == "rerank"

        last = Following(head, *words)
        assert last.end()[0] == 0, last.lines
    rows = score_rows(tmp_path / "out")
    assert len(rows) == len({(row["query_id"], row["doc_id"]) for row in rows}) == 32_000
    assert all(row["error_code"] is None for row in rows)


def kill(marker: str, is_meant: Callable[[str], bool]) -> None:
    for pid in processes_of(marker):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if is_meant(line):
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue  # it has ended


# The kill sweep


@dataclass(slots=True)
class SubmittedRun(Run):
    """A run whose driver is the cluster's, and followed by a process here."""

    dashboard: str = ""
    submission: str | None = None

    def start(self) -> None:
        self.submission = self._name()
        Run.start(self)

    @property
    def command(self) -> Sequence[str]:
        words = ["resume", self.submission] if self.submission else self.arguments
        return [*SUBMIT, *words, f"--address={self.dashboard}"]

    def _name(self) -> str | None:
        found = re.search(r"rerank-\d{8}-\d{6}-\w+", self.said()) if self.num_drivers else None
        return found[0] if found else None

    def kill_driver(self) -> None:
        """The one over there; who follows it is told."""
        for pid in descendants(self.root):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"tests.faults.sweep_driver" in line:
                os.kill(pid, signal.SIGKILL)
        assert self.driver and self.driver.wait(60) == 1
        assert "was killed on the head, by signal 9; what is finished is kept" in self.said()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, str]]:
    """A cluster that asks for a token, where `shardrank` is the sweep's driver."""
    program, token = tmp_path / "bin" / "shardrank", tmp_path / "token"
    port, *agents = free_ports(3)
    program.parent.mkdir()
    run = f"{sys.executable} -m tests.faults.sweep_driver {tmp_path}/log"
    program.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    heads = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": port}
    nodes = {"head": heads, "gpu-a": {"num_cpus": 1, "num_gpus": 1}}
    for node, agent in zip(nodes.values(), agents, strict=True):
        node["dashboard_agent_listen_port"] = agent  # the usual one may be another Ray's
    with simulated(nodes) as cluster:
        yield replace(cluster, address=None), f"http://127.0.0.1:{port}"


def test_a_submitted_job_loses_nothing_to_kills(tmp_path: Path, place: tuple[Place, str]) -> None:
    job = make_job(tmp_path / "job", 60)
    rng = random_of("submitted")
    kinds = ["actor that scores", "worker that preprocesses", "driver", "worker that writes"]
    rng.shuffle(kinds)
    run = SubmittedRun(job, place[0], tmp_path, rng, dashboard=place[1])
    sweep.sweep(run, draw(rng, job, kinds))
    assert [kill.point.kind for kill in run.kills] == kinds
