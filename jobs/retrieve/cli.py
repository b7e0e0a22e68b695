"""`shardrank retrieve`: the nearest vectors of each query, as a run for `rerank`."""

import json
from dataclasses import fields
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from shardrank.jobs.retrieve.retrieval import Retrieval, RetrievalOptions
from shardrank.jobs.retrieve.retrieval import retrieve as run_retrieve
from shardrank.jobs.retrieve.vectors import Tally
from shardrank.jobs.run.progress import duration
from shardrank.jobs.secrets import printable


def retrieve(
    queries: Annotated[
        str,
        typer.Option(help="What `embed --as query` wrote, or Parquet with query_id and embedding"),
    ],
    embeddings: Annotated[
        str, typer.Option(help="What `embed` wrote, or Parquet with doc_id and embedding")
    ],
    output: Annotated[
        str, typer.Option(help="File of the run: *.parquet, or *.trec or *.txt for TREC's form")
    ],
    top_k: Annotated[int, typer.Option(help="Documents of each query")] = 100,
    corpus: Annotated[
        str | None, typer.Option(help="The table that --where is about, with doc_id")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only documents whose row of --corpus meets this condition in SQL"),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map", help="TABLE.COLUMN=NAME: another name of an id, as corpus.doc_id=sku"
        ),
    ] = None,
    index: Annotated[
        Literal["ivf", "hnsw"] | None,
        typer.Option(help="Approximate, by an index of FAISS in memory; default: exact"),
    ] = None,
    recall: Annotated[
        float, typer.Option(help="With --index: what it is to find of the exact result")
    ] = 0.95,
    threads: Annotated[int | None, typer.Option(help="Default: one a CPU")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to search on; default: this process")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object only")] = False,
) -> None:
    """Find each query's nearest documents by cosine, and write them as a run for `rerank`."""
    options = RetrievalOptions(
        queries,
        embeddings,
        output,
        top_k=top_k,
        corpus=corpus,
        where=where,
        maps=tuple(map_ or ()),
        index=index,
        recall=recall,
        num_threads=threads,
        address=address,
    )
    found = run_retrieve(options)
    if as_json:
        typer.echo(json.dumps(values(found)))
        return
    console = Console(markup=False)
    table = RichTable(show_header=False, box=None)
    for name, value in _rows(found, top_k):
        table.add_row(name, Text(printable(value)))
    console.print(table, highlight=False)
    for noun, tally in (("query", found.queries), ("document", found.vectors)):
        for line in _skipped(noun, tally):
            console.print(printable(line), style="yellow", highlight=False, soft_wrap=True)


def values(found: Retrieval) -> dict[str, Any]:
    """What is printed, as plain values."""
    figures = {each.name: getattr(found, each.name) for each in fields(found)}
    for name in ("queries", "vectors"):
        tally = figures[name]
        figures[name] = {
            "num": tally.num_vectors,
            "num_rows": tally.num_rows,
            "skipped": tally.skipped,
            "ids": tally.ids,
        }
    return figures | {"seconds": round(found.seconds, 3), "num_missing": found.num_missing}


def _rows(found: Retrieval, top_k: int) -> list[tuple[str, str]]:
    queries, vectors = found.queries, found.vectors
    pairs_per_s = queries.num_vectors * vectors.num_vectors / max(found.seconds, 1e-9)
    rows = [
        ("queries", f"{queries.num_vectors:,} ({queries.skipped.total():,} without a result)"),
        ("vectors", f"{vectors.num_vectors:,} ({vectors.skipped.total():,} skipped)"),
    ]
    if found.wanted is not None:
        missing = f", {found.num_missing:,} of them without a row" if found.num_missing else ""
        rows.append(("filter", f"{found.wanted:,} documents match{missing}"))
    if found.instruction is not None:
        rows.append(("instruction", found.instruction or "none"))
    if found.index is not None:
        what = "cells probed" if found.index == "ivf" else "candidates kept open"
        rows.append(("index", f"{found.index}, {found.effort:,} {what}"))
        rows.append((f"recall@{top_k}", f"{found.recall:.4f} of the exact result"))
    rows.append(("time", f"{duration(found.seconds)} ({pairs_per_s:,.0f} products/s)"))
    return [*rows, ("run", f"{found.output} ({found.num_rows:,} rows)")]


def _skipped(noun: str, tally: Tally) -> list[str]:
    """A line for each thing that was wrong, with the first ids."""
    lines = []
    for code, num in tally.skipped.most_common():
        ids = tally.ids[code]
        more = f" and {num - len(ids):,} more" if num > len(ids) else ""
        lines.append(f"  {num:,} x {code}: {noun} {', '.join(map(repr, ids))}{more}")
    return lines
