"""`make demo`: the real job on the embedded data set with the embedded model, and what it changed.

Nothing here scores: it starts the command that it prints, reads what that wrote, and measures it.
The set has no first-stage retriever: its "first stage" is a random order of 20 candidates.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shardrank.jobs.command import pasteable
from shardrank.jobs.evaluate.cli import print_comparison, write_report
from shardrank.jobs.evaluate.measures import Comparison, Scores, compare, load_scores
from shardrank.jobs.evaluate.page import Page
from shardrank.jobs.evaluate.previews import load_labels
from shardrank.jobs.evaluate.qrels import load_qrels
from shardrank.jobs.inputs.tables import open_table

HERE = Path(__file__).resolve().parent
MEASURES = ("nDCG@10", "Success@1")
GROUPS = ("task", "language")
_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class DemoSet:
    """A directory with queries, corpus, run and qrels, and in words what each document shows."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / f"{name}.parquet")

    def words(self, table: str, key: str) -> dict[str, str]:
        """Id -> its text and language, or of what it is a picture: a terminal shows no pictures."""
        rows = pq.read_table(self.path(table)).to_pylist()
        return {row[key]: _words(row) for row in rows}


def _words(row: Mapping[str, Any]) -> str:
    pictures = [f"[{kind}: {row['object']}]" for kind in ("video", "image") if row.get(kind)]
    texts = [f"{row['text']} ({row['language']})"] if row.get("text") else []
    return " ".join([*pictures, *texts])


def command(demo: DemoSet, model: Path, output: Path) -> list[str]:
    """The arguments of `shardrank`, the same as for anybody's own data."""
    tables = [f"--{name}={_short(demo.path(name))}" for name in ("run", "queries", "corpus")]
    return ["rerank", *tables, f"--model={_short(model)}", f"--output={_short(output)}"]


def _short(path: Path | str) -> str:
    here = Path.cwd()
    path = Path(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def run_job(arguments: Sequence[str], output: Path) -> None:
    """A fresh run each time: an earlier demo's output, and nothing else, is removed."""
    if (output / "manifest.json").exists():
        shutil.rmtree(output)
    done = subprocess.run([sys.executable, "-m", "shardrank.cli", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def examples(comparison: Comparison, groups: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The queries to show: each task's first in a language not shown yet, not picked by its
    result.
    """
    chosen: list[str] = []
    seen: set[str] = set()
    for members in comparison.members(groups["task"]).values():
        fresh = (query for query in members if groups["language"].get(query) not in seen)
        chosen.append(next(fresh, members[0]))
        seen.add(groups["language"].get(chosen[-1], ""))
    return chosen


def example_table(
    query: str,
    scores: Scores,
    comparison: Comparison,
    qrels: Mapping[str, Mapping[str, int]],
    documents: Mapping[str, str],
) -> Table:
    """The first stage's first three beside the reranker's; what is relevant is marked."""
    score = {c.doc_id: c.score for c in scores.candidates[query]}
    table = Table("", "first stage had", "reranker put first", "score", box=None, pad_edge=False)
    orders = [_top(run[query]) for run in (comparison.before_run, comparison.after_run)]
    for rank, (before, after) in enumerate(zip(*orders, strict=False), start=1):
        cells = [_mark(doc_id, qrels[query], documents) for doc_id in (before, after)]
        table.add_row(str(rank), *cells, f"{score[after]:.3f}")
    return table


def _top(ranking: Mapping[str, float]) -> list[str]:
    return sorted(ranking, key=lambda doc_id: -ranking[doc_id])[:_NUM_SHOWN]


def _mark(doc_id: str, judged: Mapping[str, int], documents: Mapping[str, str]) -> Text:
    is_relevant = judged.get(doc_id, 0) > 0
    mark = "✓ " if is_relevant else "  "
    return Text(mark + documents[doc_id], style="green" if is_relevant else "")


def show(demo: DemoSet, output: Path, report: Path, console: Console) -> None:
    qrels = load_qrels(demo.path("qrels"))
    scores = load_scores(str(output), qrels)
    comparison = compare(scores, qrels, MEASURES)
    tables = {name: open_table(name, demo.path(name), {}) for name in ("queries", "corpus")}
    groups = {name: load_labels(tables["queries"], name) for name in GROUPS}
    shown = examples(comparison, groups)
    queries, documents = demo.words("queries", "query_id"), demo.words("corpus", "doc_id")
    for query in shown:
        console.print(Text(f"\n{queries[query]}", style="bold"), f"[dim]{query}[/]")
        console.print(example_table(query, scores, comparison, qrels, documents))
    console.print()
    print_comparison(console, scores, comparison, groups)
    title = "ShardRank demo: emoji by name, picture and film"
    page = Page(title, scores, comparison, qrels, groups=groups, featured=shown)
    write_report(str(report), page, tables)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", type=Path, default=HERE / "data" / "set")
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--output", type=Path, default=Path("out") / "demo")
    options = parser.parse_args(arguments)
    console = Console()
    demo, output = DemoSet(options.set.resolve()), options.output.resolve()
    job = command(demo, options.model.resolve(), output)
    console.print(f"$ {pasteable(job)}", highlight=False, soft_wrap=True)
    run_job(job, output)
    report = output / "report.html"
    show(demo, output, report, console)
    console.print(
        f"\nWith pictures, and the queries that gained and lost most: {_short(report)}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
