"""A Ray cluster as its dashboard's HTTP API has it: jobs sent there, asked after, stopped, and
their logs as they grow. Whatever fails is one sentence that says what to do. Knows no job of ours.
"""

import asyncio
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

# First, because it sets variables that Ray reads when it is imported.
import shardrank.cluster  # noqa: F401

# isort: split
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.secrets import redacted

for _name in ("job.sdk", "dashboard_sdk"):  # which say at INFO what we say ourselves
    logging.getLogger(f"ray.dashboard.modules.{_name}").setLevel(logging.ERROR)
logging.getLogger("ray._private.runtime_env").setLevel(logging.ERROR)

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_TIMEOUTS_S = (10.0, 120.0)
"""To connect, and between two bytes: a head that stores a large package is silent for a while."""
_STARTS_WITHIN_S = 60.0
SILENT_S = 30.0
"""A log that says nothing for so long is asked for anew: a connection that a sleeping machine or a
router dropped looks the same as one to a silent job.
"""
_TICK_S = 0.5


class Unreachable(JobError):
    pass


class NoSuchJob(JobError):
    pass


@dataclass(frozen=True, slots=True)
class Cluster:
    """What runs there, and the names of the machines that are its living nodes."""

    ray: str
    python: str
    hosts: frozenset[str]


class _Client(JobSubmissionClient):
    def _do_request(self, *args: Any, **options: Any) -> Any:
        return super()._do_request(*args, timeout=_TIMEOUTS_S, **options)


class Dashboard:
    def __init__(self, address: str | None) -> None:
        given = address or os.environ.get(_ADDRESS) or self._asked_of_ray()
        self.address = redacted(given)
        self.option = ("--address", given) if address else ()
        with self._asked():
            if "://" not in given:
                given = f"http://{given}"
            if not given.startswith(("http://", "https://")):
                raise UsageError(f"--address {self.address}: expected one like http://head:8265")
            os.environ[_ADDRESS] = given  # which Ray prefers to the address that it is given
            self._client = _Client(given)

    @staticmethod
    def _asked_of_ray() -> str:
        """The dashboard of the cluster that RAY_ADDRESS names, as `ray.init` reads it."""
        found = os.environ.get("RAY_ADDRESS")
        if found is not None and "://" in found:
            return found
        if found is None:
            raise UsageError(
                "--address is missing: the cluster's dashboard, such as http://head:8265 (or in "
                f"{_ADDRESS})"
            )
        try:
            return ray_address_to_api_server_url(found)
        except Exception as error:  # of many kinds
            raise UsageError(
                f"RAY_ADDRESS: no cluster was found at {found}; give its dashboard's address, such "
                "as --address http://head:8265"
            ) from error

    def cluster(self) -> Cluster:
        with self._asked():
            versions = self._data("/api/v0/cluster_metadata")
            nodes = [each["raylet"] for each in self._data("/nodes?view=summary")["summary"]]
            hosts = (node["nodeManagerHostname"] for node in nodes if node["state"] == "ALIVE")
            return Cluster(versions["rayVersion"], versions["pythonVersion"], frozenset(hosts))

    def _data(self, path: str) -> Any:
        answer = self._client._do_request("GET", path)
        answer.raise_for_status()
        return answer.json()["data"]

    def submit(
        self,
        job: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        """Upload the working directory, if it is not there already, and start the job. A head that
        has only just started is asked again.
        """
        until = time.monotonic() + _STARTS_WITHIN_S
        while True:
            try:
                with self._asked(job):
                    self._client.submit_job(
                        submission_id=job,
                        entrypoint=entrypoint,
                        runtime_env=dict(runtime_env),
                        metadata=dict(metadata),
                    )
                return
            except Unreachable as error:
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(1)

    def store(self, place: str, content: bytes) -> None:
        """Keep it in the head's memory, in the key-value store, as `gcs://` and `place`."""
        with self._asked():
            answer = self._client._do_request("PUT", f"/api/packages/gcs/{place}", data=content)
            answer.raise_for_status()

    def job(self, job: str) -> JobDetails:
        with self._asked(job):
            return self._client.get_job_info(job)

    def jobs(self) -> list[JobDetails]:
        with self._asked():
            return self._client.list_jobs()

    def stop(self, job: str) -> None:
        with self._asked(job):
            self._client.stop_job(job)

    def log(self, job: str) -> str:
        with self._asked(job):
            return self._client.get_job_logs(job)

    def lines(self, job: str) -> Generator[str | None, None, None]:
        """The lines of a job's log from its first one, until the job has ended; None where no other
        has come yet. Raises Unreachable where the connection ends first, or says nothing for long.
        """
        with self._asked(job):
            rest = ""
            for chunk in _chunks(self._client, job):
                if chunk is None:
                    yield None
                    continue
                *lines, rest = (rest + chunk).split("\n")
                yield from lines
            if rest:
                yield rest

    @contextmanager
    def _asked(self, job: str = "") -> Iterator[None]:
        """What goes wrong meanwhile, in our own words."""
        try:
            yield
        except AuthenticationError as error:
            raise JobError(self._token_sentence(str(error))) from error
        except (OSError, aiohttp.ClientError) as error:  # requests' errors are OSErrors
            raise Unreachable(
                f"no Ray dashboard answers at {self.address} ({_reason(error)}): is the cluster "
                "up, and its port open or tunnelled to (`ray dashboard`, `kubectl port-forward`)?"
            ) from error
        except (RuntimeError, KeyError) as error:
            said = str(error)
            if "status code 404" in said:
                raise NoSuchJob(
                    f"the cluster at {self.address} knows no job {job}: a head that was started "
                    "anew has forgotten the jobs before; the same `shardrank submit` again goes on "
                    "with what is finished"
                ) from error
            kind = Unreachable if "status code 5" in said else JobError
            last = redacted(str(error).strip().splitlines()[-1])
            raise kind(f"the cluster at {self.address} refused: {last}") from error

    def _token_sentence(self, said: str) -> str:
        if said.startswith("Authentication failed"):
            where = "~/.ray/auth_token"
            if "RAY_AUTH_TOKEN" in os.environ:
                where = "the variable RAY_AUTH_TOKEN"
            elif "RAY_AUTH_TOKEN_PATH" in os.environ:
                where = os.environ["RAY_AUTH_TOKEN_PATH"]
            return (
                f"the cluster at {self.address} refused the token in {where}: it is another "
                "cluster's; copy ~/.ray/auth_token from the machine that started this one"
            )
        return (
            f"the cluster at {self.address} asks for a token, and none was found here: export "
            "RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token (mode 600) or in "
            "the file that RAY_AUTH_TOKEN_PATH names"
        )


def _chunks(client: JobSubmissionClient, job: str) -> Iterator[str | None]:
    """Pieces of the log as they come, and None where none has."""
    tail, pending, heard = client.tail_job_logs(job), None, time.monotonic()
    with asyncio.Runner() as runner:
        while True:
            pending = pending or asyncio.ensure_future(anext(tail, ""), loop=runner.get_loop())
            if not runner.run(_is_done(pending)):
                if time.monotonic() - heard > SILENT_S:
                    raise TimeoutError("the log says nothing")
                yield None
                continue
            try:
                chunk = pending.result()
            except RuntimeError as error:  # it was closed, but not by its end
                raise ConnectionError(str(error)) from error
            if not chunk:
                return
            yield chunk
            pending, heard = None, time.monotonic()


async def _is_done(pending: asyncio.Future[str]) -> bool:
    done, _ = await asyncio.wait([pending], timeout=_TICK_S)
    return bool(done)


def _reason(error: BaseException) -> str:
    """The innermost error's, of those that libraries put around it."""
    inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
    while isinstance(inner, BaseException):
        error, inner = inner, inner.__cause__ or inner.__context__
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redacted(said.splitlines()[0])
