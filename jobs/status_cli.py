"""`shardrank status` and `shardrank verify`: what a job did, and the proof that it is whole."""

import json
import shlex
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shardrank.jobs.outputs.status import Status, read_status
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.run.progress import duration

_OUTPUT = Annotated[str, typer.Argument(help="A job's --output directory")]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object only")]


def status_command(output: _OUTPUT, as_json: _JSON = False) -> None:
    """Show what a finished, a running or a stopped job did, and how to go on with it."""
    found = read_status(output)
    if as_json:
        print(json.dumps(_as_json(found)))
        return
    _print(found, Console())


def verify_command(output: _OUTPUT, as_json: _JSON = False) -> None:
    """Prove that every input pair has exactly one row: ids are read again from the input and from
    the score files, and compared.
    """
    counts = verify_output(output)
    if as_json:
        print(json.dumps(asdict(counts)))
        return
    print(
        f"{counts.num_pairs:,} pairs of {counts.num_queries:,} queries: each has exactly one row "
        f"({counts.num_pairs - counts.num_failed:,} with a score, {counts.num_failed:,} with an "
        "error)"
    )
    for code, num in counts.errors.items():
        print(f"  {num:,} x {code}")


def _as_json(status: Status) -> dict[str, object]:
    return {
        "output": status.output,
        "state": status.state,
        "lease_age_s": status.lease_age_s,
        "num_units": status.num_units,
        "num_units_done": len(status.units),
        "num_parts": len(status.parts),
        "num_pairs": status.num_pairs,
        "errors": status.errors,
        "seconds": status.manifest["seconds"],
        "num_runs": status.manifest["num_runs"],
        "slowest": [asdict(unit) for unit in status.slowest],
        "resume": _resume(status),
    }


def _print(status: Status, console: Console) -> None:
    manifest = status.manifest
    table = Table(show_header=False, box=None)
    table.add_row("state", _state(status))
    table.add_row("units", f"{len(status.units):,} of {status.num_units:,} done")
    if status.parts:
        pairs = sum(unit.num_pairs for unit in status.parts)
        table.add_row("parts", f"{len(status.parts):,} by document, {pairs:,} pairs")
    table.add_row("rows", f"{status.num_pairs:,}")
    table.add_row("errors", f"{sum(status.errors.values()):,}")
    table.add_row("time", f"{duration(manifest['seconds'])} in {manifest['num_runs']} runs")
    table.add_row("model", manifest["model"]["name"])
    console.print(table, highlight=False)
    for code, num in status.errors.items():
        console.print(f"  {num:,} x {code}", style="yellow", highlight=False)
    if status.slowest:
        console.print("slowest units (preparing and scoring):", highlight=False)
    for unit in status.slowest:
        rate = unit.num_pairs / max(unit.seconds or 0, 1e-9)
        console.print(
            f"  {unit.name}: {unit.seconds:,.1f} s, {unit.num_pairs:,} pairs ({rate:,.1f} pairs/s)",
            highlight=False,
        )
    if (command := _resume(status)) is not None:
        console.print("go on with:\n  " + command, highlight=False, soft_wrap=True)


def _state(status: Status) -> str:
    holder = status.holder
    if status.state == "finished" or holder is None:
        return status.state
    who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    if status.is_silent:
        age = duration(status.lease_age_s or 0)
        return (
            f"running ({who}; its lease is {age} old: probably dead, which the next run finds out)"
        )
    if status.state == "running":
        return f"running ({who})"
    return f"stopped without a word ({who})"


def _resume(status: Status) -> str | None:
    if (status.state != "stopped" and not status.is_silent) or status.command is None:
        return None
    directory, arguments = status.command
    return f"cd {shlex.quote(directory)} && {shlex.join(['shardrank', *arguments])}"
