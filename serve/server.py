"""A server's life in the command that starts it: its port, Ray, loading, and the end in order."""

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardrank.serve.console import PIPE_VARIABLE, Console, say
from shardrank.serve.gate.keys import KEYS_VARIABLE
from shardrank.serve.proxy import ACCESS_LOG_VARIABLE, CALLBACK, CALLBACK_VARIABLE
from shardrank.serve.settings import ServeSettings

_CONNECT_S = 2.0
_LISTENING = "0A"  # as /proc/net/tcp has it


class NotStarted(OSError):
    """The endpoint did not start; the message says why."""


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
        from shardrank.cluster import connected

        with connected(address):
            for number in (signal.SIGINT, signal.SIGTERM):  # Ray has put its own in their place
                signal.signal(number, _interrupt)
            try:
                _start(settings, host, port, num_replicas, folder)
                if is_local:
                    _check_shared(host, port)
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
                _drain()
            except KeyboardInterrupt:  # while it started, or for the second time
                say("stopping at once")
            finally:
                _leave(is_local)


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
        raise _port_in_use(host, port)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve's server has it
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _port_in_use(host, port) from error
            raise NotStarted(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _check_shared(host: str, port: int) -> None:
    """Raises NotStarted where another server came to the same port since it was checked."""
    if any(number > 1 for number in Counter(_listening(port)).values()):
        raise _port_in_use(host, port)


def _listening(port: int) -> Iterator[str]:
    """The addresses at which sockets of this machine do: one that is shared comes twice (Linux)."""
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *_ = line.split()
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                yield local


def _port_in_use(host: str, port: int) -> NotStarted:
    return NotStarted(f"port {port} of {host} is in use: choose another one with --port")


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


def _start(
    settings: ServeSettings, host: str, port: int, num_replicas: int | None, folder: str | None
) -> None:
    """Raises NotStarted."""
    import ray
    from ray import serve

    from shardrank.serve.deployment import APP_NAME, application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    uses_gpu = settings.reranker.device != "cpu" and gpus > 0
    num_replicas = num_replicas or (gpus if uses_gpu else 1)
    try:
        serve.start(
            http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"}
        )
        where = f"{num_replicas} x {'GPU' if uses_gpu else 'CPU'}"
        say(f"loading {settings.reranker.model} on {where} ...")
        metrics = folder and os.path.join(folder, "metrics")
        built = application(settings, num_replicas, 1 if uses_gpu else 0, metrics)
        serve.run(built, name=APP_NAME)
    except RuntimeError as error:
        if "Failed to bind to address" in str(error):  # since it was checked
            raise _port_in_use(host, port) from error
        raise NotStarted(f"the endpoint did not start: {_cause() or error}") from error
    url = f"http://{host}:{port}"
    say(f"serving {settings.model_name} at {url} (API: {url}/docs)")


def _cause() -> str:
    """What a replica said last, without its traceback."""
    from ray import serve

    deployments = [
        deployment
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    ]
    lines = [line for each in deployments for line in each.message.strip().splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or [""])[-1]


def _drain() -> None:
    """What comes is told to come back by the proxies, which stay until the replicas have ended."""
    from ray import serve

    from shardrank.serve.deployment import APP_NAME, STOPPING_S

    say(
        f"stopping: requests in work are finished first, for up to {STOPPING_S} s; "
        "the same signal again stops at once"
    )
    try:
        serve.delete(APP_NAME)
    except TimeoutError:
        say(f"requests that were not finished within {STOPPING_S} s are lost")


def _leave(is_local: bool) -> None:
    from ray import serve

    from shardrank.serve.deployment import APP_NAME

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if not is_local:  # what others run there stays
        serve.delete(APP_NAME)
        if not serve.status().applications:
            serve.shutdown()
