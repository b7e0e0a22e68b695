"""`shardrank evaluate`: how good is the first stage's order, how good the reranker's?"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from shardrank.jobs.errors import UsageError
from shardrank.jobs.evaluate.measures import (
    DEFAULT_MEASURES,
    Comparison,
    Scores,
    compare,
    load_scores,
)
from shardrank.jobs.evaluate.page import Page, Preview, render, shown_documents, shown_queries
from shardrank.jobs.evaluate.previews import load_labels, load_previews
from shardrank.jobs.evaluate.qrels import load_qrels
from shardrank.jobs.inputs.forms import (
    Mappings,
    open_content,
    read_mappings,
    roots_of,
    tsv_layouts,
)
from shardrank.jobs.inputs.tables import OpenedTable
from shardrank.jobs.secrets import printable
from shardrank.jobs.storage import Location, write_atomically

_QRELS_COLUMNS = ("query_id", "doc_id", "relevance")


def evaluate(
    output: Annotated[str, typer.Argument(help="A job's --output directory")],
    qrels: Annotated[
        str, typer.Option(help="TREC qrels, a BEIR or mteb table (tsv, jsonl), or Parquet")
    ],
    measure: Annotated[
        list[str] | None,
        typer.Option(help=f"As ir-measures names them; default: {', '.join(DEFAULT_MEASURES)}"),
    ] = None,
    complete: Annotated[
        bool, typer.Option(help="Count judged queries that the run lacks as 0 (trec_eval -c)")
    ] = False,
    report: Annotated[
        str | None, typer.Option(help="Also write one self-contained HTML file here")
    ] = None,
    queries: Annotated[
        str | None, typer.Option(help="The queries table, to show texts and pictures")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="The corpus table, to show texts and pictures")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Column names as `rerank` has them")] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="TABLE.COLUMN=NAME, TABLE being queries, corpus or qrels"),
    ] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="A column of --queries to average by (language)")
    ] = None,
    media_root: Annotated[
        list[str] | None, typer.Option(help="Where local media paths may lead, as `rerank` has it")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object only")] = False,
) -> None:
    """Measure a job's output against qrels, before and after reranking."""
    qrels_columns, mappings = _mappings(preset, map_ or [])
    if group_by and queries is None:
        raise UsageError("--group-by needs --queries: the column is read from that table")
    judgements = load_qrels(qrels, qrels_columns)
    scores = load_scores(output, judgements)
    comparison = compare(scores, judgements, measure or DEFAULT_MEASURES, complete=complete)
    layouts = tsv_layouts(preset)
    opened = {
        name: open_content(name, uri, mappings[name], layouts[name])
        for name, uri in (("queries", queries), ("corpus", corpus))
        if uri is not None
    }
    groups = {name: load_labels(opened["queries"], name) for name in group_by or []}
    if as_json:
        typer.echo(json.dumps(summary(scores, comparison, groups)))
    else:
        is_finished = Location.parse(output).child("_SUCCESS").exists()
        print_comparison(Console(), scores, comparison, groups, is_finished)
    if report is not None:
        page = Page(f"Reranked: {output}", scores, comparison, judgements, groups=groups)
        write_report(report, page, opened, roots_of(media_root))
        if not as_json:
            typer.echo(f"Report: {report}")


def _mappings(preset: str | None, maps: Sequence[str]) -> tuple[dict[str, str], Mappings]:
    """`--map qrels.*` and the others apart."""
    columns = {}
    for text in [text for text in maps if text.startswith("qrels.")]:
        column, _, name = text.removeprefix("qrels.").partition("=")
        if column not in _QRELS_COLUMNS or not name:
            raise UsageError(
                f"--map {text}: expected qrels.COLUMN=NAME, COLUMN being one of "
                f"{', '.join(_QRELS_COLUMNS)}"
            )
        columns[column] = name
    return columns, read_mappings(preset, [t for t in maps if not t.startswith("qrels.")])


def write_report(
    path: str,
    page: Page,
    tables: Mapping[str, OpenedTable],
    media_root: str | Sequence[str] | None = None,
) -> None:
    """Render `page` with previews of what it shows, read from `tables` (queries, corpus)."""
    gained, lost = shown_queries(page.comparison)
    shown = [*page.featured, *gained, *lost]
    previews: dict[str, dict[str, Preview]] = {"queries": {}, "corpus": {}}
    wanted = {
        "queries": set(shown),
        "corpus": shown_documents(page.scores, page.comparison, shown),
    }
    for name, opened in tables.items():
        previews[name] = load_previews(opened, wanted[name], media_root)
    html = render(replace(page, queries=previews["queries"], documents=previews["corpus"]))
    write_atomically(Location.parse(path), html.encode("utf-8"))


def summary(
    scores: Scores, comparison: Comparison, groups: Mapping[str, Mapping[str, str]]
) -> dict[str, object]:
    """What is printed, as plain values; NaN is None."""
    return {
        "num_queries": len(comparison.queries),
        "num_missing_queries": len(comparison.missing_queries),
        "num_pairs": scores.num_pairs,
        "errors": dict(scores.errors),
        "measures": _as_values(comparison.averages()),
        "groups": {
            name: {
                label: _as_values(comparison.averages(members))
                for label, members in comparison.members(labels).items()
            }
            for name, labels in groups.items()
        },
    }


def _as_values(rows: Sequence[tuple[str, float, float]]) -> dict[str, dict[str, float | None]]:
    return {
        name: {"before": None if math.isnan(before) else before, "after": after}
        for name, before, after in rows
    }


def print_comparison(
    console: Console,
    scores: Scores,
    comparison: Comparison,
    groups: Mapping[str, Mapping[str, str]],
    is_finished: bool = True,
) -> None:
    if not is_finished:
        console.print("[yellow]The job has not finished (no _SUCCESS): these are its parts.[/]")
    console.print(_table("measure", comparison.averages()))
    first = comparison.measures[0]
    for name, labels in groups.items():
        rows = [
            (f"{label} ({len(members)})", *comparison.averages(members)[0][1:])
            for label, members in comparison.members(labels).items()
        ]
        console.print(_table(f"{first} by {name}", rows))
    failed = ", ".join(f"{code} {count}" for code, count in scores.errors.most_common())
    console.print(
        f"{len(comparison.queries)} queries measured, {len(comparison.missing_queries)} judged "
        f"queries not in the run; {scores.num_pairs} pairs, {sum(scores.errors.values())} failed"
        f"{f' ({failed})' if failed else ''}",
        highlight=False,
        soft_wrap=True,
    )


def _table(title: str, rows: Sequence[tuple[str, float, float]]) -> RichTable:
    table = RichTable(title, "first stage", "reranked", "change")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, before, after in rows:
        shown = Text(printable(name))
        table.add_row(shown, _number(before), f"{after:.4f}", _signed(after - before))
    return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.4f}"
