"""`shardrank serve` and `shardrank new-key`: the options, and a server's life in the command that
starts it: its port, Ray, loading, what its processes say, and the end in order.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.options import built, built_here, with_options
from shardrank.serve.console import END, OUT, PIPE_VARIABLE, say
from shardrank.serve.errors import NotStarted
from shardrank.serve.gate.key_file import KEYS_VARIABLE, environment_keys, hash_key, new_key
from shardrank.serve.gate.keys import ApiKeys, check_exposed
from shardrank.serve.proxy import ACCESS_LOG_VARIABLE, CALLBACK, CALLBACK_VARIABLE
from shardrank.serve.settings import ENDPOINT, Limits, ServeSettings

_PIPE_BYTES = 1 << 20
"""Lines that the command has not shown yet. No process waits for it: over this they are lost."""
_CONNECT_S = 2.0
_LISTENING = "0A"  # as /proc/net/tcp has it


def new_key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is")],
) -> None:
    """Make an API key: it is shown once, its hash goes into the keys file."""
    key = new_key()
    print(key)
    print(f'\n# for the keys file:\n[keys.{name}]\nsha256 = "{hash_key(key)}"', file=sys.stderr)


@with_options(ENDPOINT)
def serve_command(
    host: Annotated[
        str, typer.Option(help="Another one than loopback needs API keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    num_replicas: Annotated[
        int | None, typer.Option(min=1, help="Default: one a GPU, or one on CPU")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
    **given: Any,
) -> None:
    """Answer Cohere's, Jina's, vLLM's, TEI's, Voyage's and others' rerank clients over HTTP."""
    try:
        settings = _settings(given)
        keys = ApiKeys.of(settings.keys_file, settings.keys)
        check_exposed(host, keys)
        if address is None:  # a cluster's nodes may have another file system
            check_port(host, port)
            for engine in filter(None, (settings.engine, settings.embedding_engine)):
                resolve_checkpoint(engine, weights=False)
        settings = replace(settings, is_local=keys.is_open)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run_server(settings, host, port, num_replicas, address)


def _settings(given: dict[str, Any]) -> ServeSettings:
    """Raises ValueError. Without a model, the embedder alone, or else the demo's."""
    if not given["model"] and given["embedder"]:
        given = given | {"model": given["embedder"]}
    if not given["model"]:
        served_name = given["served_name"] or "shardrank-demo"
        given = given | {"model": _demo_model(), "served_name": served_name}
    if given["keys_file"]:
        given = given | {"keys_file": os.path.abspath(given["keys_file"])}
    keys = environment_keys(os.environ.get(KEYS_VARIABLE))
    limits = built(Limits, given)  # first, whose rules are stricter than the engine's
    return built_here(ServeSettings, given, limits=limits, keys=keys)


def _demo_model() -> str:
    directory = Path(__file__).resolve().parents[1] / "demo" / "model"
    if not directory.is_dir():
        raise ValueError("--model is missing, and the demo's model is not beside this package")
    return str(directory)


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
                signal.signal(number, signal.default_int_handler)
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


class Console:
    """The command's end: a thread that shows what the others say."""

    def __init__(self, path: str) -> None:
        os.mkfifo(path, 0o600)
        # Open for writing too, or the pipe would end when the last of the others does.
        self._pipe = os.open(path, os.O_RDWR)
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):  # what this user may have at most
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._thread = threading.Thread(target=self._show, name="console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.write(self._pipe, END + b"\n")
        self._thread.join()

    def _show(self) -> None:
        with open(self._pipe, "rb") as lines:
            for line in lines:
                if line.startswith(END):
                    return
                stream = sys.stdout if line.startswith(OUT) else sys.stderr
                with contextlib.suppress(OSError):  # whoever read ours has gone
                    print(line[1:].decode("utf-8", "replace"), end="", file=stream, flush=True)
