"""Ray, joined or started, and the scoring pool that fits it."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# All are read when Ray is imported or started: our display instead of Ray's, and no C++ log lines
# between ours (Ray keeps its own log files).
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home unless asked

# torch's threads must not spin while they wait: beside two busy processes on 2 cores, two spinning
# threads scored 7 and 18 times slower than two sleeping ones (two rounds).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# oneDNN and torch's layer over it keep what they made for each of the last 1,024 shapes, and every
# plan has a number of rows of its own. What is kept lies between freed activations, so that glibc
# cannot return those: over 983 pairs of the mid preset a process grew from 800 to 1,440 MB with
# the defaults, to 1,220 with 64, and stayed at 935 with 16, at no cost in speed.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")

_FOR_WORKERS = ("OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

import ray  # noqa: E402

from shardrank.jobs.errors import JobError, UsageError  # noqa: E402
from shardrank.jobs.run.pipeline import Pool  # noqa: E402

_LOCAL_MIN_CPUS = 2
"""Logical: one scoring actor beside one task that feeds it, also on a machine of one core."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A cluster for the length of the job: the one this process is in, a given one, or our own."""
    if ray.is_initialized():
        yield
        return
    _init(address or os.environ.get("RAY_ADDRESS"))
    try:
        yield
    finally:
        ray.shutdown()


def _init(address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    _quiet_ray_data()
    try:
        with _stderr_held_back():
            if address is None:
                cpus = max(_LOCAL_MIN_CPUS, os.cpu_count() or 1)
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
                _protect_token()
            else:
                ray.init(address=address, runtime_env=_runtime_env(), **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise JobError(f"cannot {where}: {error}") from error


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


def is_submitted() -> bool:
    """Whether this driver runs under `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _runtime_env() -> dict[str, Any]:
    """Our packages for workers that do not have them; a submitted job brings its own."""
    settings = {"env_vars": {name: os.environ[name] for name in _FOR_WORKERS}}
    if is_submitted():
        return settings
    return settings | {"py_modules": [str(Path(__file__).absolute().parents[1])]}


def choose_pool(resources: dict[str, float], device: str, num_actors: int | None) -> Pool:
    """One actor a GPU, or on a cluster without any, one on a CPU.

    A CUDA pool larger than the cluster waits for its autoscaler. Raises UsageError otherwise.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if device.startswith("cuda") or (device == "auto" and gpus):
        if not gpus and not num_actors:
            raise UsageError(
                "the cluster has no GPU; with an autoscaler say how many with --num-actors"
            )
        return _checked(Pool(num_actors or gpus, num_cpus=0, num_gpus=1), cpus)
    return _checked(Pool(num_actors or 1, num_cpus=1, num_gpus=0), cpus)


def settled_dtype(dtype: str, pool: Pool) -> str:
    """What the pool's actors make of it, as actors/model/device.py has it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if pool.num_gpus else "float32"


def _checked(pool: Pool, cpus: int) -> Pool:
    """Ray would wait without end for CPUs that the pool itself holds."""
    needed = int(pool.num_actors * pool.num_cpus) + 1
    if cpus < needed:
        raise UsageError(
            f"too few CPUs: {pool.num_actors} scoring actors and one reading task need {needed}, "
            f"the cluster has {cpus}; lower --num-actors or add CPUs"
        )
    return pool
