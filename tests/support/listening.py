"""Processes of a session and the ports that they listen on, as /proc has them."""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

LOOPBACK = {"0100007F", "0" * 16 + "FFFF00000100007F", "0" * 24 + "01000000"}


def processes(parent: int) -> dict[Path, bytes]:
    """Folders and titles of what belongs to the Ray that `parent` started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_bytes()
            session = (path / "stat").read_text().rpartition(")")[2].split()[3]
        except OSError:
            continue
        if session == str(os.getsid(parent)):
            found[path] = title
    return found


def listening(parent: int) -> Counter[str]:
    """How many ports these processes listen on at each address, as /proc/net/tcp writes it."""
    sockets = set()
    for path in processes(parent):
        with suppress(OSError):
            sockets |= {os.readlink(each) for each in (path / "fd").iterdir()}
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return Counter(
        line[1].partition(":")[0]
        for line in lines
        if line[3] == "0A" and f"socket:[{line[9]}]" in sockets
    )
