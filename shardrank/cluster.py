"""Ray, joined or started, for the job and the endpoint alike. Knows nothing of either."""

import logging
import os
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
}
for _name, _value in _FOR_WORKERS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

_LOCAL_MIN_CPUS = 2
"""Logical: one scoring actor beside one task that feeds it, also on a machine of one core."""


class ClusterUnavailable(ConnectionError):
    """Ray could not be joined or started; the message says where, and Ray's own reason."""


def worker_environment() -> dict[str, str]:
    """The variables that every process which scores is to have, as they are set here."""
    return {name: os.environ[name] for name in _FOR_WORKERS}


def start_ray(address: str | None, runtime_env: Mapping[str, Any] | None = None) -> None:
    """Join the cluster at `address`, with a runtime environment, or start a Ray of our own.

    Raises ClusterUnavailable.
    """
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    _quiet_ray_data()
    try:
        with _stderr_held_back():
            if address is None:
                cpus = max(_LOCAL_MIN_CPUS, os.cpu_count() or 1)
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
                _protect_token()
            else:
                ray.init(address=address, runtime_env=runtime_env, **quiet)
    except Exception as error:  # Ray raises a bare one where its start takes too long
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ClusterUnavailable(f"cannot {where}: {error}") from error


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


def _protect_token() -> None:
    """Ray writes the token of local clusters readable for everybody on the machine."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file():
        token.chmod(0o600)
