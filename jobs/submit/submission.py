"""A submission: a command, and what of the submitting machine goes along, as the job keeps it.

Knows how it is started and submitted again, not how it is followed.
"""

import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from shardrank.jobs.command import RESUMED_BY, pasteable
from shardrank.jobs.errors import UsageError
from shardrank.jobs.interruption import LEAVES_AFTER_S
from shardrank.jobs.run.progress import Step, display
from shardrank.jobs.submit import variables
from shardrank.jobs.submit.sending import WorkingDirectory
from shardrank.jobs.submit.variables import SUBMITTER, own_version

if TYPE_CHECKING:  # Ray takes seconds to import, and a refusal needs none of it
    from ray.job_submission import JobDetails

    from shardrank.jobs.submit.dashboard import Cluster, Dashboard

logger = logging.getLogger(__name__)

STOPPED_WITHIN_S = LEAVES_AFTER_S + 15
"""A job ends by itself when it is told to; Ray would kill it after three seconds."""
_KEPT = "shardrank"


@dataclass(frozen=True, slots=True)
class Submission:
    """What is kept with the job, so that it can be submitted again; of variables the names."""

    arguments: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str | None = None
    exclude: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @classmethod
    def of(cls, job: "JobDetails") -> "Submission | None":
        kept = (job.metadata or {}).get(_KEPT)
        if kept is None:
            return None
        values: Any = json.loads(kept, object_hook=_with_tuples)
        return cls(**values)

    def entrypoint(self) -> str:
        """A checkout comes as the working directory; without one the nodes have the package."""
        has_package = self.working_dir and os.path.isfile(f"{self.working_dir}/shardrank/cli.py")
        program = ["python", "-m", "shardrank.cli"] if has_package else ["shardrank"]
        return shlex.join([*program, *self.arguments])

    @property
    def options(self) -> list[str]:
        """What else than its arguments submits it again."""
        options = [] if self.working_dir is None else ["--working-dir", self.working_dir]
        for name in ("exclude", "env", "shared"):
            options += [word for each in getattr(self, name) for word in (f"--{name}", each)]
        return options

    def check_granted(self, job: str, again: "Submission") -> None:
        """Raises UsageError where `again`, this user's own words, sends less from this machine: who
        else may submit to the cluster could have had the job ask for more than its user sends.
        """
        lacking = [name for name in self.env if name not in again.env]
        if lacking or (self.working_dir and not again.working_dir):
            raise UsageError(
                f"{job} had variables or a directory of the machine that submitted it, and a job "
                "on a cluster does not say what this one sends: give them again, as with "
                + shlex.join(self.options)
            )


def resumed(job: "JobDetails") -> list[str]:
    """What goes on with it, as `shardrank submit` has it."""
    kept = Submission.of(job)
    return ["resume", str(job.submission_id), *([] if kept is None else kept.options)]


def _with_tuples(kept: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in kept.items()}


def start(
    dashboard: "Dashboard",
    job: str,
    submission: Submission,
    values: dict[str, str],
    directory: WorkingDirectory | None,
) -> None:
    """Send what goes along, and start the job."""
    settings = {
        RESUMED_BY: shlex.join([job, *submission.options]),
        SUBMITTER: own_version(),
        "SHARDRANK_LOG_EVERY_S": "3",  # is shown as it comes
        "RAY_JOB_STOP_WAIT_TIME_S": f"{STOPPED_WITHIN_S:g}",
    }
    runtime_env: dict[str, Any] = {"env_vars": settings}
    if directory is not None:
        logger.info(f"{directory.path} goes along: {directory}")
        runtime_env |= {"working_dir": str(directory.path), "excludes": list(directory.excludes)}
    with display() as shown:
        shown.show(Step(f"submitting {job}"))
        if values:
            place, content = variables.packed(values)
            dashboard.store(place, content)
            settings[variables.KEY] = place
        kept = {_KEPT: json.dumps(asdict(submission))}
        dashboard.submit(job, submission.entrypoint(), runtime_env, kept)


def go_on(dashboard: "Dashboard", *ways: Sequence[str]) -> str:
    """Commands of ours for the same cluster, a line each."""
    commands = (pasteable(["submit", *way, *dashboard.option]) for way in ways)
    return "".join(f"\n  {command}" for command in commands)


def check_versions(cluster: "Cluster", address: str) -> None:
    """Raises UsageError for a Ray that the package does not run with: whatever would be uploaded,
    the job would fail there. Of Python the job has the cluster's.
    """
    ours, theirs = (each.split(".")[:2] for each in (metadata.version("ray"), cluster.ray))
    if ours != theirs:
        raise UsageError(
            f"the cluster at {address} runs Ray {cluster.ray}, and this version of ShardRank needs "
            f"Ray {'.'.join(ours)}: start it with the versions of constraints.txt"
        )
    here = ".".join(map(str, sys.version_info[:2]))
    if not cluster.python.startswith(f"{here}."):
        logger.info(
            f"the cluster has Python {cluster.python}, this machine {here}: the job has the former"
        )
