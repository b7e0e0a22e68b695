"""A Ray head as an operator starts it: token authentication on, dashboard on loopback, and GPUs
that only Ray believes in. Whoever starts one ends every process of it.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUM_GPUS = 2


@dataclass(frozen=True, slots=True)
class Head:
    address: str
    dashboard: str
    environment: dict[str, str]
    ports: tuple[int, ...]

    @property
    def submit(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "shardrank.cli", "submit")

    def run(
        self, *command: str, timeout_s: float = 240, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of a user who has the token."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | environment,
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


@contextlib.contextmanager
def ray_head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="sr-", dir="/tmp"))  # short: socket paths have 107 bytes
    try:
        yield start_head(folder, free_ports(5))
    finally:
        end_processes(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def start_head(folder: Path, ports: Sequence[int]) -> Head:
    """Its token is made where the folder has none."""
    token = folder / "token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    port, dashboard, client, agent, metrics = ports
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", *keys):
        environment.pop(name, None)
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    address, at = f"127.0.0.1:{port}", environment["RAY_API_SERVER_ADDRESS"]
    head = Head(address, at, environment, tuple(ports))
    options = (
        f"--node-ip-address=127.0.0.1 --port={port} --dashboard-port={dashboard} "
        f"--dashboard-host=127.0.0.1 --ray-client-server-port={client} "
        f"--dashboard-agent-listen-port={agent} --metrics-export-port={metrics} "
        f"--num-cpus=4 --num-gpus={NUM_GPUS} --object-store-memory={200 << 20} "
        f"--temp-dir={folder} --disable-usage-stats"
    )
    started = head.run("ray", "start", "--head", *options.split())
    assert started.returncode == 0, started.stdout
    return head
