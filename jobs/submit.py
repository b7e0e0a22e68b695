"""`shardrank submit`: a command of ours on a cluster, sent from another machine and followed there.

The job runs in the cluster, whoever follows it: an end of this process is none of the job's.
"""

import json
import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardrank.jobs import variables
from shardrank.jobs.command import SUBMISSION, pasteable
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.interruption import LEAVES_AFTER_S
from shardrank.jobs.run.progress import Display, Step, display, duration
from shardrank.jobs.secrets import printable
from shardrank.jobs.sending import Paths, WorkingDirectory, check_public, placed, read_variables

if TYPE_CHECKING:  # Ray takes seconds to import, and a refusal needs none of it
    from ray.job_submission import JobDetails

    from shardrank.jobs.dashboard import Cluster, Dashboard

logger = logging.getLogger(__name__)

LOST_AFTER_S = 300.0
"""That a cluster does not answer, before its jobs are no longer followed."""
_ASK_EVERY_S = 2.0
_STOPPED_WITHIN_S = LEAVES_AFTER_S + 15
"""A job ends by itself when it is told to; Ray would kill it after three seconds."""
_SUBMITTER = "SHARDRANK_SUBMITTER"
_KEPT = "shardrank"

app = typer.Typer(no_args_is_help=True, help="Run a command on a Ray cluster, and follow it.")

_Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster's dashboard, such as http://head:8265; default: RAY_API_SERVER_ADDRESS, "
        "then RAY_ADDRESS"
    ),
]
_WorkingDir = Annotated[
    str | None,
    typer.Option(
        help="A directory that goes along and is the command's own there: a checkout of "
        "ShardRank, or small inputs"
    ),
]
_Exclude = Annotated[
    list[str] | None,
    typer.Option(help="What of it stays here, as in a .gitignore; .gitignore and .rayignore count"),
]
_Env = Annotated[
    list[str] | None,
    typer.Option(help="The name of a variable whose value here the job is to have, never shown"),
]
_Shared = Annotated[
    list[str] | None,
    typer.Option(help="A directory that every node has as this machine does, such as a mount"),
]
_Detach = Annotated[bool, typer.Option("--detach", help="Start it, say its ID, and leave")]
_Id = Annotated[str, typer.Argument(help="As `submit` said it", metavar="ID")]
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


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

    def command(self, dashboard: "Dashboard") -> str:
        """What submits the same."""
        name, *rest = self.arguments
        options = [
            *dashboard.option,
            *(["--working-dir", self.working_dir] * bool(self.working_dir)),
        ]
        for option in ("exclude", "env", "shared"):
            options += [word for each in getattr(self, option) for word in (f"--{option}", each)]
        return pasteable(["submit", name, *options, *rest])


def _send(
    context: typer.Context,
    address: _Address = None,
    working_dir: _WorkingDir = None,
    exclude: _Exclude = None,
    env: _Env = None,
    shared: _Shared = None,
    detach: _Detach = False,
) -> None:
    name = str(context.info_name)
    command = _command(context, name)
    command.make_context(name, list(context.args))  # mistakes are found here
    check_public(context.args)
    values = read_variables(env or ())
    directory = WorkingDirectory.read(working_dir, exclude or ()) if working_dir else None
    dashboard = _dashboard(address)
    cluster = dashboard.cluster()
    _check_versions(cluster, dashboard.address)
    paths = Paths(cluster.hosts, tuple(shared or ()), directory)
    submission = Submission(
        (name, *placed(command, context.args, paths.place)),
        tuple(values),
        None if directory is None else str(directory.path),
        tuple(exclude or ()),
        paths.shared,
    )
    _start(dashboard, submission, values, directory, detach)


for _name in ("rerank", "verify", "evaluate"):
    app.command(
        _name,
        context_settings=_PASS_ON,
        help=f"Run `shardrank {_name}` with the same arguments there. Ctrl-C leaves it running.",
    )(_send)


@app.command()
def follow(job: _Id, address: _Address = None) -> None:
    """Show what a job says, from its beginning; its exit code is the job's."""
    _followed(_dashboard(address), job)


@app.command()
def stop(job: _Id, address: _Address = None) -> None:
    """End a job as Ctrl-C would: what is finished is kept."""
    dashboard = _dashboard(address)
    if dashboard.job(job).status.is_terminal():
        print(f"{job} has ended already")
        return
    dashboard.stop(job)
    with display() as shown:
        shown.show(Step(f"stopping {job}"))
        ended = time.monotonic() + _STOPPED_WITHIN_S + 15
        while not dashboard.job(job).status.is_terminal():
            if time.monotonic() > ended:
                raise JobError(f"{job} was told to stop, and has not ended yet")
            time.sleep(_ASK_EVERY_S / 2)
    print(
        f"stopped {job}; what is finished is kept, go on with:{_go_on(dashboard, f'resume {job}')}"
    )


@app.command(context_settings=_PASS_ON)
def resume(
    context: typer.Context,
    job: _Id,
    address: _Address = None,
    shared: _Shared = None,
    detach: _Detach = False,
) -> None:
    """Submit a job's command again, which goes on with what is finished; more arguments are added
    to it, such as --max-errors. Its variables are those of this process.
    """
    dashboard = _dashboard(address)
    before = dashboard.job(job)
    kept = Submission.of(before)
    if kept is None:
        raise UsageError(f"{job} was not submitted by `shardrank submit`: see `ray job status`")
    if not before.status.is_terminal():
        raise UsageError(f"{job} is running; follow it with:{_go_on(dashboard, f'follow {job}')}")
    name, *arguments = kept.arguments
    command = _command(context, name)
    check_public(context.args)
    cluster = dashboard.cluster()
    paths = Paths(cluster.hosts, (*kept.shared, *(shared or ())))
    arguments += placed(command, context.args, paths.place)
    command.make_context(name, list(arguments))
    values = read_variables(kept.env)
    directory = None
    if kept.working_dir is not None:
        directory = WorkingDirectory.read(kept.working_dir, kept.exclude)
    _check_versions(cluster, dashboard.address)
    again = replace(kept, arguments=(name, *arguments), shared=paths.shared)
    _start(dashboard, again, values, directory, detach)


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    address: _Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object only")] = False,
) -> None:
    """Show how a job is, or a line for each one that was submitted to the cluster."""
    dashboard = _dashboard(address)
    jobs = dashboard.jobs() if job is None else [dashboard.job(job)]
    ours = [each for each in jobs if job is not None or Submission.of(each) is not None]
    rows = [_values(each) for each in sorted(ours, key=lambda each: each.start_time or 0)]
    if as_json:
        print(json.dumps(rows if job is None else rows[0]))
    elif job is None:
        for row in rows:
            print(printable(f"{row['id']}  {row['state']:9}  {row['time']:>8}  {row['command']}"))
    else:
        row = rows[0] | {"says": _last_line(dashboard.log(job)).strip()}
        for name, value in row.items():
            if value:
                print(printable(f"{name:9}  {', '.join(value) if name == 'env' else value}"))


def _with_tuples(kept: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in kept.items()}


def _values(job: "JobDetails") -> dict[str, Any]:
    kept, now = Submission.of(job), time.time() * 1e3
    started = job.start_time or now
    return {
        "id": job.submission_id,
        "state": str(job.status.value).lower(),
        "command": job.entrypoint if kept is None else shlex.join(["shardrank", *kept.arguments]),
        "env": [] if kept is None else list(kept.env),
        "submitted": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started / 1e3)),
        "time": duration(((job.end_time or now) - started) / 1e3),
        "exit_code": job.driver_exit_code,
    }


def _command(context: typer.Context, name: str | None) -> Any:
    """Our own command of that name, whose options are known here too."""
    root: Any = context.find_root().command
    return root.commands[name]


def _dashboard(address: str | None) -> "Dashboard":
    with display() as shown:
        shown.show(Step("asking the cluster"))
        from shardrank.jobs.dashboard import Dashboard

        return Dashboard(address)


def _check_versions(cluster: "Cluster", address: str) -> None:
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
        logger.info(f"the cluster has Python {cluster.python}, and this machine {here}: no matter")


def note_submitter() -> None:
    """In a submitted job: say if the machine that submitted it has another version of the package,
    which may know other options and score differently.
    """
    theirs, ours = os.environ.get(_SUBMITTER), _version()
    if theirs not in (None, ours):
        logger.warning(
            f"this cluster has shardrank {ours}, and the machine that submitted the job {theirs}: "
            "install one version on all, or send a checkout along with --working-dir"
        )


def _version() -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("shardrank")
    return "from a checkout"


def _start(
    dashboard: "Dashboard",
    submission: Submission,
    values: dict[str, str],
    directory: WorkingDirectory | None,
    detach: bool,
) -> None:
    name = submission.arguments[0]
    job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    settings = {
        SUBMISSION: job,
        _SUBMITTER: _version(),
        "SHARDRANK_LOG_EVERY_S": "3",  # is shown as it comes
        "RAY_JOB_STOP_WAIT_TIME_S": f"{_STOPPED_WITHIN_S:g}",
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
    if detach:
        print(job)
        print(f"follow it with:{_go_on(dashboard, f'follow {job}')}", file=sys.stderr)
        return
    logger.info(f"submitted {job} to {dashboard.address}; Ctrl-C leaves it running")
    _followed(dashboard, job)


def _go_on(dashboard: "Dashboard", *ways: str) -> str:
    """Commands of ours for the same cluster, a line each."""
    commands = (pasteable(["submit", *way.split(), *dashboard.option]) for way in ways)
    return "".join(f"\n  {command}" for command in commands)


# Following


_COUNTED = re.compile(
    r"\d\d:\d\d:\d\d ((?:[^·/]+: )?([\d,]+)/([\d,]+) [a-z ]+(?: · .*)?|[^·]+ · [\d:]+)"
)
_RAYS = re.compile(r"Running entrypoint for job |\S+ \S+\tINFO job_manager\.py:\d+ -- ")


@dataclass(frozen=True, slots=True)
class Said:
    """What a job over there was at, as its log has it."""

    text: str
    num: int = 0
    total: int | None = None

    @classmethod
    def parse(cls, line: str) -> "Said | None":
        found = _COUNTED.fullmatch(line)
        if found is None:
            return None
        if found[2] is None:
            return cls(found[1])
        return cls(found[1], *(int(each.replace(",", "")) for each in found.groups()[1:3]))

    def line(self) -> str:
        return self.text


def _followed(dashboard: "Dashboard", job: str) -> None:
    """Show the job until it ends, and exit as it did; an interruption leaves it running."""
    try:
        with display() as shown:
            follower = _Follower(dashboard, job, shown)
            ended = follower.follow()
    except KeyboardInterrupt:
        ways = _go_on(dashboard, f"follow {job}", f"stop {job}")
        print(f"\n{job} runs on; follow it again or stop it with:{ways}", file=sys.stderr)
        raise typer.Exit(130) from None
    raise typer.Exit(_exit_code(ended, follower))


class _Follower:
    """Shows what a job says, through lost connections, until it has ended."""

    def __init__(self, dashboard: "Dashboard", job: str, shown: Display) -> None:
        self.dashboard, self.job, self._shown = dashboard, job, shown
        self.submission: Submission | None = None
        self.last: deque[str] = deque(maxlen=20)
        self._num_lines = 0
        self._stdout = None if sys.stdout.isatty() else sys.stdout  # the display takes a terminal's
        self._whole: str | None = None

    def follow(self) -> "JobDetails":
        from shardrank.jobs.dashboard import Unreachable

        while True:
            found = self._asked()
            if found.status.value == "PENDING":
                self._shown.show(Step(f"waiting for {self.job} to start"))
            with suppress(Unreachable):
                self._read()
                found = self._asked()
                if found.status.is_terminal():
                    return found
            time.sleep(_ASK_EVERY_S / 2)

    def _read(self) -> None:
        """The log's lines that were not seen yet."""
        num = 0
        with closing(self.dashboard.lines(self.job)) as lines:
            for line in lines:
                num += line is not None
                if line is not None and num > self._num_lines:
                    self._num_lines = num
                    self._say(line)

    def _say(self, line: str) -> None:
        said = Said.parse(line)
        if said is not None:
            self._shown.show(said)
            if said.total is None or said.num < said.total or said.text == self._whole:
                return
            self._whole = said.text
        if not _RAYS.match(line):
            self.last.append(line)
            print(printable(line), file=self._stdout, flush=True)

    def _asked(self) -> "JobDetails":
        """How the job is. A cluster that does not answer is asked for a while."""
        from shardrank.jobs.dashboard import NoSuchJob, Unreachable

        lost_at = time.monotonic()
        while True:
            try:
                found = self.dashboard.job(self.job)
                self.submission = Submission.of(found)
                return found
            except NoSuchJob as error:
                if self.submission is None:
                    raise
                raise JobError(
                    f"the cluster at {self.dashboard.address} was started anew: its head died, and "
                    f"{self.job} with it; what is finished is kept, go on with:\n  "
                    + self.submission.command(self.dashboard)
                ) from error
            except Unreachable as error:
                if time.monotonic() - lost_at > LOST_AFTER_S:
                    ways = _go_on(self.dashboard, f"follow {self.job}")
                    raise JobError(
                        f"{error}; it was asked for {duration(LOST_AFTER_S)}. If the cluster is "
                        f"up, {self.job} runs on; follow it with:{ways}"
                    ) from error
                self._shown.show(Step(f"{self.dashboard.address} does not answer, asking again"))
                time.sleep(_ASK_EVERY_S)


_NO_MODULE = re.compile(r"No module named '?(\w+)")


def _exit_code(ended: "JobDetails", follower: _Follower) -> int:
    """The job's own. Raises JobError where it could not say itself what became of it."""
    job, code = follower.job, ended.driver_exit_code
    resume = f"what is finished is kept, go on with:{_go_on(follower.dashboard, f'resume {job}')}"
    if ended.status.value == "SUCCEEDED":
        return 0
    if ended.status.value == "STOPPED":
        print(f"{job} was stopped; {resume}", file=sys.stderr)
        return 130
    if code is None:
        said = next(iter((ended.message or "").strip().splitlines()), "Ray does not say why")
        raise JobError(f"{job} failed on the head: {said}; {resume}")
    if code in (126, 127):
        raise JobError(
            "the cluster's head has no ShardRank where a job finds it: install it on every node, "
            "in the environment that Ray was started from (cluster.yaml does), or send a checkout "
            "along: --working-dir DIR"
        )
    if code < 0 or code > 128 and code != 130:
        number = -code if code < 0 else code - 128
        raise JobError(f"{job} was killed on the head, by signal {number}; {resume}")
    missing = next(filter(None, map(_NO_MODULE.search, reversed(follower.last))), None)
    if missing is not None:
        raise JobError(
            f"a node of the cluster lacks the package {missing[1]}: every node needs what "
            f"constraints.txt pins, in the environment that Ray was started from; {resume}"
        )
    return code


def _last_line(log: str) -> str:
    return next((line for line in reversed(log.splitlines()) if line.strip()), "")
