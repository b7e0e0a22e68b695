"""Ray, joined or started, for the job and the endpoint alike. Knows nothing of either."""

import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# All are read when Ray is imported or started: our display instead of Ray's, and no C++ log lines
# between ours (Ray keeps its own log files).
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home unless asked

_FOR_WORKERS = {
    # torch's threads must not spin while they wait: beside two busy processes on 2 cores, two
    # spinning threads scored 7 and 18 times slower than two sleeping ones (two rounds).
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN and torch's layer over it keep what they made for each of the last 1,024 shapes, and
    # every plan has a number of rows of its own. What is kept lies between freed activations, so
    # that glibc cannot return those: over 983 pairs of the mid preset a process grew from 800 to
    # 1,440 MB with the defaults, to 1,220 with 64, and stayed at 935 with 16, at no cost in speed.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
    # On a GPU, segments that grow instead of new ones beside them: every plan has another number of
    # rows, and what is free in pieces runs out of memory.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
for _name, _value in _FOR_WORKERS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray._common.utils import get_default_system_temp_dir  # noqa: E402
from ray._private import ray_constants  # noqa: E402

_LOCAL_MIN_CPUS = 2
"""Logical: one scoring actor beside one task that feeds it, also on a machine of one core."""

_MAX_TEMPORARY_CHARS = 34
"""A socket's path has 107, of which Ray adds 64 and a name that was taken makes 9 more of ours."""


class ClusterUnavailable(ConnectionError):
    """Ray could not be joined or started; the message says where, and Ray's own reason."""


def worker_environment() -> dict[str, str]:
    """The variables that every process which scores is to have, as they are set here."""
    return {name: os.environ[name] for name in _FOR_WORKERS}


def local_resources() -> dict[str, float]:
    """What a Ray that is started here has: the CPUs that it is told, the GPUs that it finds."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    gpus = get_accelerator_manager_for_resource("GPU")
    num_gpus = gpus.get_current_node_num_accelerators()
    visible = gpus.get_current_process_visible_accelerator_ids()
    num_gpus = num_gpus if visible is None else min(num_gpus, len(visible))
    return {"CPU": max(_LOCAL_MIN_CPUS, os.cpu_count() or 1), "GPU": num_gpus}


@contextmanager
def connected(address: str | None, runtime_env: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The cluster at `address`, where our processes have `runtime_env` beside the variables of all
    of them, or a Ray of our own; left at the end. Raises ClusterUnavailable.
    """
    _start(address, {"env_vars": worker_environment(), **(runtime_env or {})})
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str | None, runtime_env: Mapping[str, Any]) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    _quiet_ray_data()
    try:
        with _stderr_held_back():
            if address is None:
                _start_private(**quiet)
            else:
                ray.init(address=address, runtime_env=runtime_env, **quiet)
    except Exception as error:  # Ray raises a bare one where its start takes too long
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ClusterUnavailable(f"cannot {where}: {error}") from error


def _start_private(**settings: Any) -> None:
    """A Ray that nobody else can use: neither other machines nor this one's other users."""
    make_token()
    cpus = int(local_resources()["CPU"])
    if "RAY_TMPDIR" not in os.environ:
        settings["_temp_dir"] = _temporary_directory(get_default_system_temp_dir())
    with _on_loopback():
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **settings)


def _temporary_directory(base: str) -> str:
    """One that Ray may open to all, as it does, inside one that is not."""
    name = f"ray-{os.getuid()}"
    if len(os.path.join(base, name, "r")) > _MAX_TEMPORARY_CHARS:
        base = "/tmp"
    return os.path.join(private_directory(os.path.join(base, name)), "r")


def make_token() -> None:
    """The secret of local clusters, which Ray would write readable for everybody on the machine:
    who has it can run any program as its owner.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with open(opened, "w") as stream:
        stream.write(secrets.token_hex(32))


def private_directory(path: str) -> str:
    """`path`, made for this user alone; where somebody else has it, or it is a link, or open to
    others, another one beside it.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
        if not is_ours or stat.S_IMODE(found.st_mode) & 0o077:
            return tempfile.mkdtemp(prefix=f"{os.path.basename(path)}-", dir=os.path.dirname(path))
    return path


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray listens on all interfaces, unless its node's address is loopback's; it takes that for the
    address only where it believes that there are no clusters, as on a Mac.
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # for the processes that it starts
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[name] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        if before[1] is None:
            del os.environ[name]
        else:
            os.environ[name] = before[1]


def _quiet_ray_data() -> None:
    """Nothing of Ray Data on the terminal; its log file in Ray's session folder has everything."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Ray's C++ side says on stderr that it was told to be quiet; shown only if starting fails."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
