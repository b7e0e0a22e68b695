"""The Ray that a swept job runs on: the tests' own, one of its own, or a simulated cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.sweep_cluster import descendants

ROOT = Path(__file__).parents[2]
"""Where our own programs are started, so that Ray's workers find their modules."""


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
        quick = {"RAY_health_check_period_ms": "1000"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sweep_cluster", json.dumps(nodes)],
            cwd=ROOT,
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
