"""Ray as a job has it: joined or started for its length, and its errors in our own words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# First, because it sets variables that Ray reads when it is imported.
from shardrank.cluster import ClusterUnavailable, local_resources
from shardrank.cluster import connected as connected_to

# isort: split
import ray
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError, UserCodeException

from shardrank.jobs.errors import JobError
from shardrank.jobs.run.pool import choose_pool
from shardrank.jobs.submit import variables


def check_pool(address: str | None, device: str, num_actors: int) -> None:
    """Raises UsageError for more actors than could ever run, where that is known before Ray starts:
    of another cluster it is known when it is joined.
    """
    if ray.is_initialized():
        choose_pool([ray.cluster_resources()], device, num_actors)
    elif not _address_of(address):
        choose_pool([local_resources()], device, num_actors, can_grow=False)


def _address_of(given: str | None) -> str | None:
    """None for a Ray of our own."""
    return given or os.environ.get("RAY_ADDRESS")


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A cluster for the length of the job: the one this process is in, a given one, or our own."""
    if ray.is_initialized():
        yield
        return
    try:
        with connected_to(_address_of(address), _package()):
            yield
    except ClusterUnavailable as error:
        raise JobError(_on_one_line(str(error))) from error


def _on_one_line(said: str) -> str:
    """What Ray says in several, and what to do where it is about versions."""
    sentence = " ".join(said.split())
    if "Version mismatch" not in said:
        return sentence
    return (
        f"{sentence}; run the job with the Python and Ray of the cluster, or let `shardrank submit`"
        " run it there"
    )


def is_submitted() -> bool:
    """Whether this driver runs under `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _package() -> dict[str, Any]:
    """Ours, for workers that do not have it; a submitted job brings its own, and variables."""
    if not is_submitted():
        return {"py_modules": [str(Path(__file__).absolute().parents[1])]}
    return {"worker_process_setup_hook": variables.HOOK} if variables.KEY in os.environ else {}


_RAYS = ("ray.", "To change", "UserCodeException")
"""How lines begin that Ray ends its own errors with."""


@contextmanager
def own_errors() -> Iterator[None]:
    """What went wrong inside a worker without Ray's wrapping, and what Ray Data itself gives up."""
    try:
        yield
    except ExecutionTimeoutError as error:
        seconds = DataContext.get_current().execution_no_progress_timeout_s
        raise JobError(
            f"nothing moved for {seconds / 60:g} minutes: a scoring actor or a "
            "storage that hangs, or a cluster without room for the job; `ray status` and the logs "
            "in Ray's session folder say more"
        ) from error
    except (RayError, SystemException) as error:
        raise own_error(error) from error


def own_error(error: BaseException) -> JobError:
    """Our own error inside Ray's, or the last line that any of them says."""
    sentence = type(error).__name__
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, JobError) and not isinstance(seen, RayError):
            return seen  # Ray's error is one of ours too, but says the whole traceback
        if type(seen) is not UserCodeException:  # which says how to configure Ray, not what failed
            sentence = _last_line(str(seen)) or sentence
        seen = getattr(seen, "cause", None) or seen.__cause__
    return JobError(f"a worker failed: {sentence}")


def _last_line(text: str) -> str:
    """The last exception in a traceback's text that is not Ray's: what says most."""
    lines = []
    for part in text.split("\nThe above exception was the direct cause"):
        said = part.partition("\nFailed to apply UDF transform")[0].splitlines()
        lines.append(next((line.strip() for line in reversed(said) if line.strip()), ""))
    others = [line for line in lines if line and not line.startswith(_RAYS)]
    return (others or lines)[-1]
