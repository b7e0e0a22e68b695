"""CPU time and memory of this process and its descendants (Linux's /proc; else of this one)."""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def cpu_seconds() -> float:
    """User and system time of the live process tree, all threads."""
    stats = filter(None, map(_stat, descendants(os.getpid())))
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in stats)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes() -> int:
    """The most that each process of the tree ever held in memory, added up."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = own if sys.platform == "darwin" else 1024 * own
    return own + sum(status_bytes(pid, "VmHWM") for pid in descendants(os.getpid()))


def descendants(root: int) -> set[int]:
    """The processes that `root` started and those that they started, as far as they live."""
    stats = {int(path.name): _stat(int(path.name)) for path in _PROC.glob("[0-9]*")}
    found = {root}
    while more := {p for p, stat in stats.items() if stat and int(stat[1]) in found} - found:
        found |= more
    return found - {root}


def status_bytes(pid: int, name: str) -> int:
    """A size out of /proc/PID/status, such as VmRSS or VmHWM; 0 for a process that has ended."""
    with suppress(OSError, IndexError):
        status = (_PROC / str(pid) / "status").read_text()
        return 1024 * int(status.partition(f"\n{name}:")[2].split()[0])
    return 0


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: [1] is the parent, [11] and [12] user and system time."""
    with suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return []
