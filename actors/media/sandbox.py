"""What a process that decodes strangers' files gives up first: keys, network, programs, writing.

Linux alone has the kernel's part of it; where that is not to be had, the rest still holds. Knows
nothing about videos.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

_KEPT_VARIABLES = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD"),  # where torch may have its own libraries from
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SYSTEMROOT"),
)

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_EPERM = 1

# socket, execve, execveat, kill, tkill, ptrace, process_vm_readv, process_vm_writev, mount, bpf,
# pidfd_send_signal, io_uring_setup, pidfd_getfd
_FORBIDDEN_CALLS = {
    "x86_64": (41, 59, 322, 62, 200, 101, 310, 311, 165, 321, 424, 425, 438),
    "aarch64": (198, 221, 281, 129, 130, 117, 270, 271, 40, 280, 424, 425, 438),
}
_SECCOMP_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_CALLS = 0x40000000
"""From this number on x86-64 has the same calls a second time."""

_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_VERSION_FLAG = 1
_EXECUTE_AND_WRITE = 0x1FFF & ~0b1100  # all rights of the first version but reading
_CONNECT_AND_BIND_TCP = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11

_CAPABILITY_VERSION = 0x20080522
_READ_FILES = 1 << 2  # CAP_DAC_READ_SEARCH: root's videos may be somebody else's


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that Python and its libraries need; keys and credentials are none of them."""
    return {name: variables[name] for name in _KEPT_VARIABLES if name in variables}


def enter() -> list[str]:
    """Gives up what the kernel lets a process give up, for good, and names what that was.

    To be called while the process has one thread.
    """
    if sys.platform != "linux":
        return []
    import resource  # no such module on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return ["limits"]
    given_up = ["limits", "privileges"]
    _drop_capabilities(libc)
    walls = {"landlock": _enter_landlock, "seccomp": _enter_seccomp}
    return given_up + [name for name, entered in walls.items() if entered(libc)]


def data_bytes() -> int:
    """What limit_work limits of memory, as of now; Linux alone counts it."""
    if sys.platform != "linux":
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_work(size_bytes: int, cpu_s: int) -> None:
    """Beyond these bytes allocations fail, beyond these seconds from now on the process ends:
    sooner it than the whole machine.
    """
    if sys.platform == "linux":
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        spent_s = int(usage.ru_utime + usage.ru_stime)
        wanted = {resource.RLIMIT_DATA: size_bytes, resource.RLIMIT_CPU: spent_s + cpu_s}
        for kind, limit in wanted.items():
            _, hardest = resource.getrlimit(kind)
            within = limit if hardest == resource.RLIM_INFINITY else min(limit, hardest)
            resource.setrlimit(kind, (within, hardest))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """All of root's but one: with CAP_PERFMON alone it may read other processes' environments."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) == 0:
        permitted = struct.unpack_from("=I", held, 4)[0] & _READ_FILES
        libc.capset(header, struct.pack("=6I", permitted, permitted, 0, 0, 0, 0))


def _enter_landlock(libc: ctypes.CDLL) -> bool:
    """No file is written or run, no TCP, and no look into a process outside: /proc/PID/environ of
    the one that has the keys.
    """
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION_FLAG)
    if version < 1:
        return False
    rights = {1: _EXECUTE_AND_WRITE, 4: _CONNECT_AND_BIND_TCP, 6: _SIGNALS_AND_ABSTRACT_SOCKETS}
    handled = [right for since, right in rights.items() if version >= since]
    attributes = struct.pack(f"={len(handled)}Q", *handled)
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        return libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
    finally:
        os.close(rules)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _enter_seccomp(libc: ctypes.CDLL) -> bool:
    """No sockets, programs, signals to others, or looks into their memory."""
    machine = platform.machine()
    if machine not in _FORBIDDEN_CALLS or sys.maxsize < 1 << 32:
        return False
    code = _filter(_SECCOMP_ARCHITECTURES[machine], _FORBIDDEN_CALLS[machine])
    program = _Program(len(code) // 8, code)
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0


def _filter(architecture: int, forbidden: tuple[int, ...]) -> bytes:
    """Classic BPF over struct seccomp_data: the call's number at 0, the architecture at 4."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    count = len(forbidden)
    steps = [
        (load, 0, 0, 4),
        (equal, 0, count + 3, architecture),
        (load, 0, 0, 0),
        (at_least, count + 1, 0, _X32_CALLS),
        *((equal, count - index, 0, number) for index, number in enumerate(forbidden)),
        (answer, 0, 0, 0x7FFF0000),  # allowed
        (answer, 0, 0, 0x00050000 | _EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
