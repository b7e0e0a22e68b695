"""`shardrank submit`: a command of ours on a cluster, sent from another machine and followed there.

The job runs in the cluster, whoever follows it: an end of this process is none of the job's.
"""

import json
import logging
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.run.progress import Step, display, duration
from shardrank.jobs.secrets import printable
from shardrank.jobs.submit.follower import ASK_EVERY_S, Follower, exit_code
from shardrank.jobs.submit.sending import (
    Paths,
    WorkingDirectory,
    check_public,
    placed,
    read_variables,
)
from shardrank.jobs.submit.submission import (
    STOPPED_WITHIN_S,
    Submission,
    check_versions,
    go_on,
    resumed,
    start,
)

if TYPE_CHECKING:  # Ray takes seconds to import, and a refusal needs none of it
    from ray.job_submission import JobDetails

    from shardrank.jobs.submit.dashboard import Dashboard

logger = logging.getLogger(__name__)


class _Commands(typer.core.TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise UsageError(
                f"submit {args[0]}: a command comes first, one of {', '.join(self.commands)}, as "
                "in `shardrank submit rerank INPUT --output DIR`, with all options after it"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    help="Run a command on a Ray cluster, and follow it.",
    context_settings={"ignore_unknown_options": True},
)

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


def _send(
    context: typer.Context,
    address: _Address = None,
    working_dir: _WorkingDir = None,
    exclude: _Exclude = None,
    env: _Env = None,
    shared: _Shared = None,
    detach: _Detach = False,
) -> None:
    given = Submission(
        tuple(context.args),
        tuple(env or ()),
        working_dir,
        tuple(exclude or ()),
        tuple(shared or ()),
    )
    check_public(context.args)
    name = str(context.info_name)
    _command(context, name).make_context(name, list(context.args))  # mistakes are found here
    luggage = _packed(given)
    _submit(context, _dashboard(address), given, luggage, (name,), detach)


for _name in ("rerank", "embed", "verify", "evaluate"):
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
        until = time.monotonic() + STOPPED_WITHIN_S + 15
        while not (found := dashboard.job(job)).status.is_terminal():
            if time.monotonic() > until:
                raise JobError(f"{job} was told to stop, and has not ended yet")
            time.sleep(ASK_EVERY_S / 2)
    ways = go_on(dashboard, resumed(found))
    print(f"{job} ended: {found.status.value.lower()}; what is finished is kept, go on with:{ways}")


@app.command(context_settings=_PASS_ON)
def resume(
    context: typer.Context,
    job: _Id,
    address: _Address = None,
    working_dir: _WorkingDir = None,
    exclude: _Exclude = None,
    env: _Env = None,
    shared: _Shared = None,
    detach: _Detach = False,
) -> None:
    """Submit a job's command again, which goes on with what is finished; more arguments are added
    to it, such as --max-errors.
    """
    given = Submission(tuple(context.args), tuple(env or ()), working_dir, tuple(exclude or ()))
    check_public(context.args)
    dashboard = _dashboard(address)
    before = dashboard.job(job)
    kept = Submission.of(before)
    if kept is None:
        raise UsageError(f"{job} was not submitted by `shardrank submit`: see `ray job status`")
    if not before.status.is_terminal():
        ways = go_on(dashboard, ["follow", job])
        raise UsageError(f"{job} is running; follow it with:{ways}")
    kept.check_granted(job, given)
    paths = tuple(shared or kept.shared)
    again = replace(given, exclude=given.exclude or kept.exclude, shared=paths)
    _submit(context, dashboard, again, _packed(again), kept.arguments, detach)


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
        from shardrank.jobs.submit.dashboard import Dashboard

        return Dashboard(address)


def _packed(given: Submission) -> tuple[WorkingDirectory | None, dict[str, str]]:
    """The directory and the variables' values. Raises UsageError for what cannot be sent."""
    directory = given.working_dir
    values = read_variables(given.env)
    return (WorkingDirectory.read(directory, given.exclude) if directory else None), values


def _submit(
    context: typer.Context,
    dashboard: "Dashboard",
    given: Submission,
    luggage: tuple[WorkingDirectory | None, dict[str, str]],
    before: Sequence[str],
    detach: bool,
) -> None:
    """Submit the command whose first words are `before`, with what is given as its last ones."""
    directory, values = luggage
    cluster = dashboard.cluster()
    check_versions(cluster, dashboard.address)
    name, *arguments = before
    command = _command(context, name)
    place = Paths(cluster.hosts, given.shared, directory).place
    arguments += placed(command, given.arguments, place)
    command.make_context(name, list(arguments))
    submission = replace(
        given,
        arguments=(name, *arguments),
        working_dir=None if directory is None else str(directory.path),
    )
    job = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    try:
        start(dashboard, job, submission, values, directory)
    except KeyboardInterrupt:
        ways = go_on(dashboard, ["status"])
        print(f"\ninterrupted; whether {job} was submitted, this says:{ways}", file=sys.stderr)
        raise typer.Exit(130) from None
    if detach:
        print(job)
        print(f"follow it with:{go_on(dashboard, ['follow', job])}", file=sys.stderr)
        return
    logger.info(f"submitted {job} to {dashboard.address}; Ctrl-C leaves it running")
    _followed(dashboard, job)


def _followed(dashboard: "Dashboard", job: str) -> None:
    """Show the job until it ends, and exit as it did; an interruption leaves it running."""
    try:
        with display() as shown:
            follower = Follower(dashboard, job, shown)
            ended = follower.follow()
    except KeyboardInterrupt:
        ways = go_on(dashboard, ["follow", job], ["stop", job])
        print(f"\n{job} runs on; follow it again or stop it with:{ways}", file=sys.stderr)
        raise typer.Exit(130) from None
    raise typer.Exit(exit_code(ended, follower))


def _last_line(log: str) -> str:
    return next((line for line in reversed(log.splitlines()) if line.strip()), "")
