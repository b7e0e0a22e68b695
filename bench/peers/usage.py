"""CPU time and memory of this process and its descendants (Linux's /proc; else of this one)."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

_PROC = Path("/proc")
_KIB = 1024


def cpu_seconds() -> float:
    """User and system time of the live process tree, all threads."""
    ticks = os.sysconf("SC_CLK_TCK")
    return time.process_time() + sum(_ticks(pid) / ticks for pid in descendants(os.getpid()))


def peak_rss_bytes() -> int:
    """The most that each process of the tree ever held in memory, added up."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else _KIB
    return own * unit + sum(status_bytes(pid, "VmHWM") for pid in descendants(os.getpid()))


def descendants(root: int) -> list[int]:
    """The processes that `root` started and those that they started, as far as they live."""
    children: dict[int, list[int]] = {}
    for path in _PROC.glob("[0-9]*"):
        fields = _stat(int(path.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found = list(children.get(root, []))
    for pid in found:
        found += children.get(pid, [])
    return found


def status_bytes(pid: int, name: str) -> int:
    """A size out of /proc/PID/status, such as VmRSS or VmHWM; 0 for a process that has ended."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith(name + ":")), 0)


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: [1] is the parent, [11] and [12] user and system time."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
