"""Environment variables that a submitted job is given by their names.

Ray writes what a job's runtime environment says into logs on every node, and answers with it who
asks for the job. So values go another way: they lie in the cluster's key-value store, in its head's
memory, from where the job's processes take them. At its end the job removes them.
"""

import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

logger = logging.getLogger(__name__)

KEY = "SHARDRANK_GIVEN"
"""The variable that says where in the store the others are."""
HOOK = f"{__name__}.take"
SUBMITTER = "SHARDRANK_SUBMITTER"
"""The variable that says which version of the package submitted the job."""


def packed(values: Mapping[str, str]) -> tuple[str, bytes]:
    """A name that nobody guesses, and what is to lie there. An upload that fails is logged with the
    first 15 bytes of it, which say nothing.
    """
    return f"given-{secrets.token_hex(16)}", json.dumps({"environment variables": values}).encode()


@contextmanager
def given() -> Iterator[None]:
    """The variables of this process, if it is a job that was given some."""
    if KEY not in os.environ:
        yield
        return
    address = os.environ["RAY_ADDRESS"]
    if not _take_from(address):
        logger.warning("the variables that the job was given are gone: submit it again")
    try:
        yield
    finally:
        with suppress(Exception):  # of Ray, whose head may be gone: then they are too
            _store(address).internal_kv_del(_place(), False, None)


def take() -> None:
    """What a worker does first."""
    import ray

    _take_from(ray.get_runtime_context().gcs_address)


def _take_from(address: str) -> bool:
    """Whether they are still there: the job that ends removes them."""
    found = _store(address).internal_kv_get(_place(), None)
    if found is not None:
        os.environ.update(json.loads(found)["environment variables"])
    return found is not None


def _store(address: str) -> Any:
    from ray import _raylet

    raylet: Any = _raylet
    return raylet.GcsClient(address=address)


def _place() -> bytes:
    return f"gcs://{os.environ[KEY]}".encode()


def note_submitter() -> None:
    """In a submitted job: say if the machine that submitted it has another version of the package,
    which may know other options and score differently.
    """
    theirs, ours = os.environ.get(SUBMITTER), own_version()
    if theirs not in (None, ours):
        logger.warning(
            f"this cluster has shardrank {ours}, and the machine that submitted the job {theirs}: "
            "install one version on all, or send a checkout along with --working-dir"
        )


def own_version() -> str:
    """The package's, as its metadata has it."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("shardrank")
    return "from a checkout"
