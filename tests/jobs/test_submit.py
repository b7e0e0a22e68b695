"""The job on a cluster that is already there: by `ray job submit`, and joined by --address.

The test starts a Ray head as an operator would (token authentication on, dashboard on loopback, two
GPUs that only Ray believes in) and ends every process of it.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "golden" / "tiny"
NUM_GPUS = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@dataclass(frozen=True, slots=True)
class Cluster:
    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, *command: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """A command of a user who has the token."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )


def free_ports(count: int) -> list[int]:
    """Below the ports that Ray gives to its workers (10002 and up)."""
    found: list[int] = []
    start = 6400 + secrets.randbelow(2500)
    for port in range(start, 10_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def processes_of(marker: str) -> list[int]:
    """Ids of the processes whose command line or environment names our own folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if marker.encode() in text:
                found.append(int(entry.name))
    return found


def end_processes(marker: str) -> None:
    for number, patience_s in ((signal.SIGTERM, 4), (signal.SIGKILL, 10)):
        for pid in processes_of(marker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while processes_of(marker) and time.monotonic() < deadline:
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="sr-", dir="/tmp"))  # short: socket paths have 107 bytes
    try:
        yield start_head(folder)
    finally:
        end_processes(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def start_head(folder: Path) -> Cluster:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, client, agent, metrics = free_ports(5)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    cluster = Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    options = (
        f"--node-ip-address=127.0.0.1 --port={port} --dashboard-port={dashboard} "
        f"--dashboard-host=127.0.0.1 --ray-client-server-port={client} "
        f"--dashboard-agent-listen-port={agent} --metrics-export-port={metrics} "
        f"--num-cpus=4 --num-gpus={NUM_GPUS} --object-store-memory={200 << 20} "
        f"--temp-dir={folder} --disable-usage-stats"
    )
    started = cluster.run("ray", "start", "--head", *options.split())
    assert started.returncode == 0, started.stdout
    return cluster


def write_candidates(path: Path, num_queries: int = 6, num_documents: int = 4) -> None:
    rows = [
        {
            "query_id": query,
            "query": f"what is number {query}",
            "candidates": [
                {"doc_id": f"d{query}-{doc}", "doc": f"number {doc}", "score": 1 / doc, "rank": doc}
                for doc in range(1, num_documents + 1)
            ],
        }
        for query in range(num_queries)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def rerank_arguments(folder: Path) -> list[str]:
    write_candidates(folder / "candidates.parquet")
    arguments = [str(folder / "candidates.parquet"), "--output", str(folder / "out")]
    return [*arguments, "--model", str(TINY), "--threads", "1", "--unit-pairs", "4"]


def check_output(folder: Path) -> None:
    """Every pair once, with a score; the pool had an actor for each of the cluster's GPUs."""
    assert (folder / "out" / "_SUCCESS").exists()
    rows = pq.read_table(folder / "out" / "scores").to_pylist()
    pairs = {(row["query_id"], row["doc_id"]) for row in rows}
    assert len(rows) == len(pairs) == 6 * 4
    assert all(row["error_code"] is None and 0 <= row["score"] <= 1 for row in rows)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["num_actors"] == NUM_GPUS


def test_the_job_runs_unchanged_through_ray_job_submit(cluster, tmp_path):
    submit = ("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT))
    arguments = ("shardrank", "rerank", *rerank_arguments(tmp_path))
    submitted = cluster.run(*submit, "--", *arguments)
    assert submitted.returncode == 0, submitted.stdout
    assert "succeeded" in submitted.stdout
    check_output(tmp_path)


def test_the_job_joins_a_cluster_by_address_and_uses_all_its_gpus(cluster, tmp_path):
    arguments = [*rerank_arguments(tmp_path), "--address", cluster.address]
    joined = cluster.run(sys.executable, "-m", "shardrank.jobs.rerank", *arguments)
    assert joined.returncode == 0, joined.stdout
    assert f"{NUM_GPUS} scoring actors on GPU" in joined.stdout
    check_output(tmp_path)


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {'0' * 64}"}])
def test_a_request_without_the_right_token_is_refused(cluster, headers):
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code in (401, 403)


def test_the_dashboard_listens_on_loopback_only(cluster):
    port = f"{int(cluster.dashboard.rsplit(':', 1)[1]):04X}"
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{port}"]
