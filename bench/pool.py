"""The peers' processes: started when first wanted, all kept, or only one at a time."""

import sys
from types import TracebackType
from typing import Any

from bench.peers.protocol import PeerSettings
from bench.processes import PeerFailed, PeerProcess
from bench.settings import IN_MEMORY, OURS, OURS_ONE, BenchSettings


class PeerPool:
    def __init__(self, settings: BenchSettings, checkpoint: str) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._processes: dict[str, PeerProcess] = {}
        self._failures: dict[str, str] = {}

    def get(self, name: str) -> PeerProcess:
        """A live process of the peer. Raises PeerFailed, the same again for one that cannot run."""
        if name in self._failures:
            raise PeerFailed(self._failures[name])
        process = self._processes.get(name)
        if process is not None and process.is_alive:
            return process
        if process is not None:
            process.close()
        if self._settings.alone:
            self.close()
        try:
            self._processes[name] = self._start(name)
        except PeerFailed as failure:
            self._failures[name] = str(failure)
            raise
        return self._processes[name]

    def close(self) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def __enter__(self) -> "PeerPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """An interrupted one does not wait for what its peers are computing."""
        if error is not None:
            for process in self._processes.values():
                process.kill()
        self.close()

    def _start(self, name: str) -> PeerProcess:
        settings = self._settings
        if name not in IN_MEMORY and not settings.has_files:
            raise PeerFailed(f"it reads weights from files: give --model, not {settings.preset}")
        extra: dict[str, Any] = settings.engine if name in (OURS, OURS_ONE) else {}
        if name == "official" and settings.official:
            extra = {"official": settings.official}
        return PeerProcess(
            f"bench.peers.{name}",
            PeerSettings(
                model=self._checkpoint,
                device=settings.device,
                dtype=settings.dtype,
                threads=settings.threads,
                max_batch_tokens=settings.max_batch_tokens,
                extra=extra,
            ),
            settings.peer_pythons.get(name, sys.executable),
            settings.workdir / "logs" / f"{name}.log",
        )
