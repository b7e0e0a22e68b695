"""Keeps this process on loopback: every other host is refused, as on a machine without a network.

It sees what Python's sockets do, whatever library calls them, but not native code's own sockets.
"""

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Iterator
from typing import Any

_guards: list[set[str]] = []
_is_installed = False


@contextlib.contextmanager
def loopback_only() -> Iterator[set[str]]:
    """The hosts that were refused meanwhile, in any thread; where guards nest, to the innermost."""
    global _is_installed
    if not _is_installed:  # an audit hook stays for the life of the process
        sys.addaudithook(_refuse)
        _is_installed = True
    refused: set[str] = set()
    _guards.append(refused)
    try:
        yield refused
    finally:
        _guards.remove(refused)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _guards or not event.startswith("socket."):
        return
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # else a socket's path
    else:
        return
    if not _is_loopback(host):
        _guards[-1].add(str(host))
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is not on loopback")


def _is_loopback(host: Any) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
