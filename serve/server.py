"""A server's life in the command that starts it: its port, Ray, loading, and the end in order."""

import contextlib
import errno
import os
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardrank.serve.console import PIPE_VARIABLE, Console, NotStarted, say
from shardrank.serve.gate.key_file import KEYS_VARIABLE
from shardrank.serve.proxy import ACCESS_LOG_VARIABLE, CALLBACK, CALLBACK_VARIABLE
from shardrank.serve.settings import ServeSettings

_CONNECT_S = 2.0
_LISTENING = "0A"  # as /proc/net/tcp has it


def run_server(
    settings: ServeSettings, host: str, port: int, num_replicas: int | None, address: str | None
) -> None:
    """Until SIGINT or SIGTERM, and then what is in work. Raises OSError where it cannot start."""
    is_local = address is None
    os.environ.setdefault(CALLBACK_VARIABLE, CALLBACK)  # before Ray starts
    os.environ[ACCESS_LOG_VARIABLE] = settings.access_log
    os.environ.pop(KEYS_VARIABLE, None)  # no process of Ray needs more than the keys' hashes
    with _shared_folder() if is_local else contextlib.nullcontext() as folder:
        say("starting Ray on this machine ..." if is_local else f"joining Ray at {address} ...")
        # Not before Ray must start; and in this order, for the first sets what Ray reads.
        from shardrank.cluster import connected
        from shardrank.serve import deployment

        with connected(address):
            for number in (signal.SIGINT, signal.SIGTERM):  # Ray has put its own in their place
                signal.signal(number, _interrupt)
            try:
                deployment.deploy(settings, host, port, num_replicas, folder)
                if is_local:
                    _check_shared(host, port)
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
                deployment.drain()
            except KeyboardInterrupt:  # while it started, or for the second time
                say("stopping at once")
            finally:
                deployment.leave(is_local)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def check_port(host: str, port: int) -> None:
    """Raises NotStarted where something listens there already, or where nothing can.

    By a connection first: Serve's own server would share the port with another ShardRank's.
    """
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    try:
        socket.create_connection((everywhere.get(host, host), port), _CONNECT_S).close()
    except OSError:
        pass
    else:
        raise NotStarted.of_port(host, port)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve's server has it
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise NotStarted.of_port(host, port) from error
            raise NotStarted(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _check_shared(host: str, port: int) -> None:
    """Raises NotStarted where another server came to the same port since it was checked."""
    if any(number > 1 for number in Counter(_listening(port)).values()):
        raise NotStarted.of_port(host, port)


def _listening(port: int) -> Iterator[str]:
    """The addresses at which sockets of this machine do: one that is shared comes twice (Linux)."""
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *_ = line.split()
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                yield local


@contextlib.contextmanager
def _shared_folder() -> Iterator[str]:
    """What the processes of this server share while it lives: its console and its metrics."""
    with tempfile.TemporaryDirectory(
        prefix="shardrank-serve-", ignore_cleanup_errors=True
    ) as folder:
        os.environ[PIPE_VARIABLE] = os.path.join(folder, "console")
        console = Console(os.environ[PIPE_VARIABLE])
        try:
            yield folder
        finally:
            console.close()
            del os.environ[PIPE_VARIABLE]
