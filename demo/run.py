"""`make demo`: the real job on the embedded data set with the embedded model, and what it changed.

Nothing here scores: it starts the command that it prints, reads what that wrote, and measures it.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.evaluate import Comparison, Scores, compare, load_scores
from jobs.evaluate_cli import print_comparison, write_report
from jobs.evaluate_page import Page
from jobs.qrels import load_qrels
from jobs.tables import open_table

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

    def column(self, table: str, key: str, column: str) -> dict[str, str]:
        rows = pq.read_table(self.path(table), columns=[key, column]).to_pylist()
        return {str(row[key]): str(row[column]) for row in rows}

    def words(self, table: str, key: str) -> dict[str, str]:
        """Id -> its text, or the kind of picture it is (a terminal shows no pictures)."""
        rows = pq.read_table(self.path(table)).to_pylist()
        return {str(row[key]): _words(row) for row in rows}


def _words(row: Mapping[str, object]) -> str:
    kinds = [f"[{kind}]" for kind in ("video", "image") if row.get(kind)]
    return " ".join([*kinds, *([str(row["text"])] if row.get("text") else [])])


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
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def examples(comparison: Comparison, tasks: Mapping[str, str], number: int) -> list[str]:
    """The first queries of each task as the set has them: nobody picked them by their result."""
    chosen: list[str] = []
    for members in comparison.members(tasks).values():
        chosen += members[:number]
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
    words = f"{documents.get(doc_id, '')}  {doc_id}".strip()
    return Text(("✓ " if is_relevant else "  ") + words, style="green" if is_relevant else "")


def show(demo: DemoSet, output: Path, report: Path, number: int, console: Console) -> None:
    qrels = load_qrels(demo.path("qrels"))
    scores = load_scores(str(output), qrels)
    comparison = compare(scores, qrels, MEASURES)
    groups = {name: demo.column("queries", "query_id", name) for name in GROUPS}
    shown = examples(comparison, groups["task"], number)
    queries, documents = demo.words("queries", "query_id"), demo.words("corpus", "doc_id")
    for query in shown:
        labels = " · ".join(labels[query] for labels in groups.values())
        console.print(Text(f"\n{queries[query]}", style="bold"), f"[dim]{labels} · {query}[/]")
        console.print(example_table(query, scores, comparison, qrels, documents))
    console.print()
    print_comparison(console, scores, comparison, groups)
    tables = {name: open_table(name, demo.path(name), {}) for name in ("queries", "corpus")}
    title = "ShardRank demo: emoji by name, picture and film"
    page = Page(title, scores, comparison, qrels, groups=groups, featured=shown)
    write_report(str(report), page, tables)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", type=Path, default=HERE / "data" / "set")
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--output", type=Path, default=Path("out") / "demo")
    parser.add_argument("--examples", type=int, default=1, help="queries shown of each task")
    options = parser.parse_args(arguments)
    console = Console()
    demo, output = DemoSet(options.set.resolve()), options.output.resolve()
    job = command(demo, options.model.resolve(), output)
    console.print(f"$ shardrank {shlex.join(job)}", highlight=False, soft_wrap=True)
    run_job(job, output)
    report = output / "report.html"
    show(demo, output, report, options.examples, console)
    console.print(
        f"\nWith pictures, and the queries that gained and lost most: {_short(report)}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
