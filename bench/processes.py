"""A peer in a process of its own: started, asked, and ended; what goes wrong is one sentence."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.peers.protocol import PeerSettings

ROOT = Path(__file__).resolve().parents[1]
_START_TIMEOUT_S = 900.0
END_TIMEOUT_S = 20.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class PeerFailed(Exception):
    """A peer is not there, or failed; the message is for the table."""


class Process:
    """Running from the constructor on. Raises PeerFailed when it cannot run here.

    peer: MODULE:CLASS. It leads a session of its own, so that it can be ended with all that it
    starts.
    """

    def __init__(
        self, peer: str, settings: PeerSettings, log: Path, python: str = sys.executable
    ) -> None:
        self._log = log
        environment = dict(os.environ, PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false")
        if settings.threads is not None:
            environment |= dict.fromkeys(_THREADS, str(settings.threads))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "bench.peers", peer, json.dumps(asdict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            self.introduction = self._answer(_START_TIMEOUT_S)
        except PeerFailed:
            self.close()
            raise

    def ask(
        self,
        call: str,
        argument: Any,
        batch_size: int | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """The answer to one call. Raises PeerFailed, and is not usable after a crash."""
        request = {"call": call, "argument": argument, "batch_size": batch_size}
        with suppress(OSError):  # it has ended: reading says how
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        return self._answer(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self, patience_s: float = END_TIMEOUT_S) -> None:
        """Closing stdin ends it; what does not end is killed, with whatever it started."""
        with suppress(OSError):
            self._requests.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """An interrupted one is not waited for."""
        self.close(0 if error else END_TIMEOUT_S)

    def _answer(self, timeout_s: float | None) -> dict[str, Any]:
        if not select.select([self._answers], [], [], timeout_s)[0]:
            self.close(0)
            raise PeerFailed(f"no answer within {timeout_s:.0f} s")
        line = self._answers.readline()
        if not line:
            self.close()
            code = self._process.returncode
            raise PeerFailed(f"its process ended with code {code}: {last_line(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no message")


def run_once(peer: str, call: str, argument: Any, settings: PeerSettings, log: Path) -> Any:
    """One result of a process of ours, which then ends. Raises PeerFailed."""
    with Process(peer, settings, log) as process:
        return process.ask(call, argument)["result"]
