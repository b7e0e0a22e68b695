"""A peer in a process of its own: started, asked, and ended; what goes wrong is one sentence."""

import json
import os
import selectors
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.peers.protocol import PeerSettings

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 900.0
_END_TIMEOUT_S = 20.0


class PeerFailed(Exception):
    """A peer is not there, or failed; the message is for the table."""


class PeerProcess:
    """Running from the constructor on. Raises PeerFailed when it cannot run here."""

    def __init__(self, module: str, settings: PeerSettings, python: str, log: Path) -> None:
        self.name = module.rpartition(".")[2]
        self.warmed: set[str] = set()
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = start(module, asdict(settings), python, settings.threads, errors)
        try:
            self.introduction = self._read(START_TIMEOUT_S)
        except PeerFailed:
            self.close()
            raise
        if not self.introduction.get("ready"):
            self.close()
            raise PeerFailed(self.introduction.get("unavailable", "it says nothing"))

    def ask(
        self, workload: Path, batch_size: int | None, timeout_s: float | None
    ) -> dict[str, Any]:
        """The answer to one workload. Raises PeerFailed, and is not usable after a crash."""
        assert self._process.stdin is not None
        request = {"workload": str(workload), "batch_size": batch_size}
        with suppress(OSError):  # it has ended: reading says how
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._read(timeout_s)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Closing stdin ends it; what does not end is killed, with whatever it started."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """At once, the whole process group."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close() if error is None else self.kill()

    def _read(self, timeout_s: float | None) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                self.kill()
                raise PeerFailed(f"no answer within {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise PeerFailed(f"its process ended with code {code}: {_last_line(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def start(
    module: str,
    argument: dict[str, Any],
    python: str,
    threads: int | None,
    errors: Any,
) -> "subprocess.Popen[bytes]":
    """`python -m module JSON` with our packages on its path and its threads limited.

    It leads a process group of its own, so that it can be ended with all that it starts.
    """
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false")
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
    return subprocess.Popen(
        [python, "-m", module, json.dumps(argument)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )


def run_once(module: str, argument: dict[str, Any], threads: int | None, log: Path) -> Any:
    """What a module of ours prints as one line of JSON. Raises PeerFailed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        process = start(module, argument, sys.executable, threads, errors)
        try:
            output, _ = process.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise PeerFailed(f"{module} ended with code {process.returncode}: {_last_line(log)}")
    return json.loads(output.splitlines()[-1])


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no message")
