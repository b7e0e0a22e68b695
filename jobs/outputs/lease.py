"""The lease of an output directory: one run at a time, as a file in it says.

The file is renewed while its run lives. A run that ended without a word is found dead at once on
its own host, and elsewhere, or in another container, by a file that stays as it is, so that no
clocks are compared. Of runs that begin at once on a local disk exactly one gets it, by a lock on
the directory; those that got past each other elsewhere would write the same files: a unit's name
and rows are settled.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.storage import Location, delete_file, read_bytes, write_atomically

logger = logging.getLogger(__name__)

LEASE = "_RUNNING"
RENEW_EVERY_S = 10.0
EXPIRES_S = 60.0
_POLL_EVERY_S = 1.0
_SETTLE_S = 0.3
"""Between writing one's own file and reading who won, where there are no locks and two began at the
same moment; an object store's requests may take that long.
"""
_REMOTE_SETTLE_S = 2.0


@contextmanager
def leased(directory: Location) -> Iterator[Callable[[], None]]:
    """Hold the directory; the yielded function raises JobError once another run has taken it.

    Raises UsageError if a living run holds it, or if it cannot be written.
    """
    lease = _Lease(directory)
    before = _await_free(directory)
    try:
        lease.take(before)
        yield lease.check
    finally:  # from before the first write on: an interruption may arrive at any moment
        lease.release()


class _Lease:
    def __init__(self, directory: Location) -> None:
        self._directory = directory
        self._place = directory.child(LEASE)
        self._is_lost = False
        self._holder = _ourselves() | {"run": uuid.uuid4().hex, "renewed": 0}
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def take(self, before: dict[str, Any] | None) -> None:
        """before: the file of a run that is over, if there is one."""
        try:
            with _locked(self._directory, makes_it=True) as is_locked:
                if is_locked and _read(self._place) != before:
                    raise _refusal(self._directory, _read(self._place) or {})
                self._write()
            if not is_locked:
                time.sleep(_SETTLE_S if self._place.is_local else _REMOTE_SETTLE_S)
            if not self._is_ours():
                raise _refusal(self._directory, _read(self._place) or {})
        except OSError as error:
            self._is_lost = True  # a storage that fails is not asked once more by `release`
            raise UsageError(f"--output: {error}") from error
        self._renewer.start()

    def _write(self) -> None:
        write_atomically(self._place, json.dumps(self._holder).encode())

    def _is_ours(self) -> bool:
        found = _read(self._place)
        return found is not None and found.get("run") == self._holder["run"]

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_EVERY_S):
            try:
                with _locked(self._directory):
                    if not self._is_ours():
                        self._is_lost = True
                        return
                    self._holder["renewed"] += 1
                    self._write()
            except OSError as error:  # storage comes back, or fails the job elsewhere
                logger.warning("the lease %s could not be renewed: %s", self._place, error)

    def check(self) -> None:
        if self._is_lost:
            raise JobError(f"{self._place}: another run has taken over this output")

    def release(self) -> None:
        self._stop.set()
        if self._renewer.is_alive():
            self._renewer.join()
        try:
            if not self._is_lost and self._is_ours():
                with _locked(self._directory):
                    delete_file(self._place)
                    _remove_if_empty(self._place)
        except OSError as error:
            logger.warning("the lease %s could not be removed: %s", self._place, error)


@contextmanager
def _locked(directory: Location, makes_it: bool = False) -> Iterator[bool]:
    """Nobody else takes, renews or returns the lease meanwhile, where the value is true: object
    stores, and some disks that are shared, have no such locks.
    """
    opened = _lock(directory.path, makes_it) if directory.is_local else None
    try:
        yield opened is not None
    finally:
        if opened is not None:
            os.close(opened)


def _lock(path: str, makes_it: bool) -> int | None:
    """The open directory; None where it cannot be locked, or made."""
    while True:
        opened = -1
        if makes_it:
            try:
                os.makedirs(path, exist_ok=True)
            except OSError:  # /proc says that there is no such file
                return None
        try:
            opened = os.open(path, os.O_RDONLY)
            flock(opened, LOCK_EX)
            if os.path.samestat(os.fstat(opened), os.stat(path)):
                return opened
        except FileNotFoundError:  # whoever had the lease removed it, empty
            if not makes_it and opened < 0:
                return None
        except OSError:
            if opened >= 0:
                os.close(opened)
            return None
        if opened >= 0:
            os.close(opened)


def _remove_if_empty(place: Location) -> None:
    """The directory, of a run that was refused before it wrote anything."""
    if place.is_local:
        with suppress(OSError):
            os.rmdir(os.path.dirname(place.path))


def holder_of(directory: Location) -> dict[str, Any] | None:
    """The holder of the directory, dead or alive: host, pid, since and renewed."""
    return _read(directory.child(LEASE))


def is_known_dead(holder: dict[str, Any]) -> bool:
    """Whether it was a process that we would see, of this host and PID namespace, and is no more.

    Containers may share a host's name and boot, and see none of each other's processes.
    """
    ours = _ourselves()
    if any(holder.get(name) != ours[name] for name in ("host", "boot", "pid_namespace")):
        return False
    return holder.get("born") != _born(holder.get("pid"))


def _await_free(directory: Location) -> dict[str, Any] | None:
    """The holder that is dead, if there is one. Raises UsageError as soon as it shows that it
    lives.
    """
    place = directory.child(LEASE)
    first = _read(place)
    if first is None or is_known_dead(first):
        return first
    logger.info(f"waiting up to {EXPIRES_S:.0f} s to see if {_described(first)} still lives")
    deadline = time.monotonic() + EXPIRES_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_EVERY_S)
        now = _read(place)
        if now is None or is_known_dead(now):
            return now
        if now != first:
            raise _refusal(directory, now)
    logger.info("it does not: going on from what it left")
    return first


def _refusal(directory: Location, holder: dict[str, Any]) -> UsageError:
    return UsageError(
        f"--output {directory} is being written by {_described(holder)}; "
        "wait for it, stop it, or name another directory"
    )


def _described(holder: dict[str, Any]) -> str:
    return (
        f"another run (process {holder.get('pid')} on {holder.get('host')}, "
        f"since {holder.get('since')})"
    )


def _read(place: Location) -> dict[str, Any] | None:
    try:
        if not place.exists():
            return None
        return json.loads(read_bytes(place))
    except ValueError:
        return {}  # of no run that we know
    except OSError:
        if place.exists():
            raise
        return None  # it went in between


def _ourselves() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _pid_namespace(),
        "pid": pid,
        "born": _born(pid),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _born(pid: Any) -> str | None:
    """When a process of this host began, in ticks; None if there is none."""
    stat = _text(f"/proc/{pid}/stat")
    return stat.rpartition(")")[2].split()[19] if stat else None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
