"""What `rerank` prints of a job at its end, and `status` at any time."""

import shlex
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from shardrank.jobs.command import HIDDEN_SENTENCE, pasteable
from shardrank.jobs.errors import Way
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.outputs.status import Status
from shardrank.jobs.rerank import Summary
from shardrank.jobs.run.progress import duration
from shardrank.jobs.search import Searched
from shardrank.jobs.secrets import HIDDEN


def print_summary(summary: Summary, console: Console) -> None:
    if summary.was_finished:
        console.print(f"already finished: {summary.output} holds this job's results")
    table = Table(show_header=False, box=None)
    for name, value in _summary_rows(summary):
        table.add_row(name, value)
    console.print(table)
    for code, count in summary.counts.errors.items():
        console.print(f"  {count:,} x {code}", style="yellow", highlight=False)


def print_search(searched: Searched, console: Console) -> None:
    """Each stage in a line, then the last one as `rerank` prints it."""
    table = Table(show_header=False, box=None)
    for name, stage in (("documents", searched.documents), ("queries", searched.queries)):
        counts, seconds = stage.counts, duration(stage.manifest.seconds)
        known = ", there already" if stage.was_finished else ""
        what = f"{counts.num_pairs:,} embedded ({counts.num_failed:,} with an error)"
        table.add_row(name, f"{what} in {seconds}{known}")
    if searched.found is not None:
        rows, seconds = searched.found.num_rows, duration(searched.found.seconds)
        table.add_row("run", f"{rows:,} rows retrieved in {seconds}: {searched.found.output}")
    console.print(table)
    print_summary(searched.reranked, console)


def _summary_rows(summary: Summary) -> list[tuple[str, str]]:
    manifest, counts = summary.manifest, summary.counts
    output, noun = manifest.output, noun_of(manifest)
    rows = [
        (noun, f"{counts.num_pairs:,} ({counts.num_failed:,} with an error)"),
        ("truncated", f"{counts.num_truncated:,}"),
        ("tokens", f"{counts.num_tokens:,} ({counts.num_visual_tokens:,} visual)"),
        ("time", f"{duration(manifest.seconds)} ({manifest.pairs_per_s:,.1f} {noun}/s)"),
        (output.folder, f"{output.results}/"),
    ]
    if noun == "pairs":
        rows.insert(0, ("queries", f"{counts.num_queries:,}"))
    if manifest.vision_cache_hit_rate is not None:
        rows.append(("vision cache", _lookups(manifest)))
    if manifest.cost is not None:
        rows.append(("cost", f"{manifest.cost:,.4f}"))
    if summary.trec_run:
        rows.append(("TREC run", summary.trec_run))
    return rows + [(name, f"{value:.4f}") for name, value in summary.measures.items()]


def noun_of(manifest: Manifest) -> str:
    """What the job's rows are of."""
    return "texts" if manifest.job.get("form") == "texts" else "pairs"


def _lookups(manifest: Manifest) -> str:
    hits, misses = manifest.vision_cache_hits or 0, manifest.num_visuals_encoded or 0
    return (
        f"{hits:,} of {hits + misses:,} lookups hit ({manifest.vision_cache_hit_rate:.1%}), "
        f"{misses:,} visuals encoded"
    )


def status_values(status: Status) -> dict[str, object]:
    return {
        "output": status.output,
        "state": status.state,
        "lease_age_s": status.lease_age_s,
        "num_units": status.num_units,
        "num_units_done": len(status.units),
        "num_parts": len(status.by_document),
        "num_pairs": status.num_pairs,
        "errors": status.errors,
        "seconds": status.manifest.seconds,
        "num_runs": status.manifest.num_runs,
        "slowest": [asdict(unit) for unit in status.slowest],
        "resume": next((command for _, command in _ways(status)), None),
    }


def facts(status: Status) -> Table:
    """The table that says how far the job is."""
    manifest = status.manifest
    table = Table(show_header=False, box=None)
    table.add_row("state", _state(status))
    table.add_row("units", f"{len(status.units):,} of {status.num_units:,} done")
    if status.by_document:
        pairs = sum(unit.num_pairs for unit in status.by_document)
        table.add_row("parts", f"{len(status.by_document):,} by document, {pairs:,} pairs")
    table.add_row("rows", f"{status.num_pairs:,}")
    table.add_row("errors", f"{sum(status.errors.values()):,}")
    table.add_row("time", f"{duration(manifest.seconds)} in {manifest.num_runs} runs")
    table.add_row("model", manifest.model["name"])
    return table


def print_status(status: Status, console: Console) -> None:
    noun = noun_of(status.manifest)
    console.print(facts(status), highlight=False)
    for code, num in status.errors.items():
        console.print(f"  {num:,} x {code}", style="yellow", highlight=False)
    if status.slowest:
        console.print("slowest units (preparing and scoring):", highlight=False)
    for unit in status.slowest:
        rate = unit.num_pairs / max(unit.seconds or 0, 1e-9)
        console.print(
            f"  {unit.name}: {unit.seconds:,.1f} s, {unit.num_pairs:,} {noun} "
            f"({rate:,.1f} {noun}/s)",
            highlight=False,
        )
    for purpose, command in _ways(status):
        console.print(f"{purpose}:\n  {command}", highlight=False, soft_wrap=True)
        if HIDDEN in command:
            console.print(HIDDEN_SENTENCE, highlight=False)


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


def _ways(status: Status) -> list[tuple[str, str]]:
    """What goes on with the job, and for what: from its own directory, in any shell's."""
    if (status.state != "stopped" and not status.is_silent) or status.command is None:
        return []
    directory, arguments = status.command
    ways = status.ways or [Way("go on with", ())]
    there = f"cd {shlex.quote(directory)} && "
    return [(way.purpose, there + pasteable([*arguments, *way.arguments])) for way in ways]
