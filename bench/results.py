"""Measurements to figures and tables: rates, ratios, bounds, shares, differences of scores."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.bound.flops import ModelShape
from bench.bound.matmul import MatmulRates
from bench.bound.roofline import roofline, roofline_line
from bench.bound.work import Counted, flops_of
from bench.contenders import Contender
from bench.settings import MAX_SCORE_DIFFERENCE, OURS_ONE, REFERENCE

Figures = dict[str, Any]
# What a part of the benchmark gives: figures for the JSON object, text, and what is wrong.
Part = tuple[Figures | None, str, list[str]]

_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("pairs/s", "pairs_per_s", lambda v: f"{v:,.2f}"),
    ("tokens/s", "tokens_per_s", lambda v: f"{v:,.0f}"),
    ("ours is", "ratio", lambda v: f"{v:.2f} x"),
    ("bound", "bound", lambda v: f"{v:.2f} x"),
    ("reached", "share_of_bound", lambda v: f"{v:.0%}"),
    ("matmul rate", "share_of_matmul_rate", lambda v: f"{v:.0%}"),
    ("CPU", "cpu_share", lambda v: f"{v:.2f}"),
    ("memory", "peak_rss_bytes", lambda v: f"{v / 2**20:,.0f} MB"),
    ("device", "peak_device_bytes", lambda v: f"{v / 2**30:,.1f} GB"),
    ("score diff", "max_score_difference", lambda v: f"{v:.0e}"),
)
LEGEND = """\
ours is      our pairs/s over this one's
bound        this one's FLOPs over those that the work needs; reached: ours is / bound
matmul rate  the time of the needed FLOPs at this machine's matmul rate, over the time taken
CPU          cores kept busy
memory       peak of its processes; device: peak of its allocator
score diff   the largest, to plain transformers pair by pair"""


def workload_figures(
    contenders: Sequence[Contender], counted: Counted, shape: ModelShape, rates: MatmulRates
) -> Figures:
    """One workload's figures, with a list of `implementations`, our two first."""
    needed = flops_of("needed", counted, shape)
    reference = next((each for each in contenders if each.name == REFERENCE), None)
    rows = [
        _alone(contender, counted, shape)
        | {"max_score_difference": _difference(contender, reference)}
        for contender in contenders
    ]
    ours, *others = rows
    for row in rows:
        if row["seconds"]:
            row["share_of_matmul_rate"] = rates.seconds(needed) / row["seconds"]
    for row in others:
        if row["seconds"]:
            row["bound"] = row["flops"] / needed.total
            if ours["seconds"]:
                row["ratio"] = row["seconds"] / ours["seconds"]
                row["share_of_bound"] = row["ratio"] / row["bound"]
    peers = [row for row in others if row["name"] != OURS_ONE and "ratio" in row]
    best = min(peers, key=lambda row: row["seconds"], default={"name": None, "ratio": None})
    return {
        "pairs": len(counted.pairs),
        "tokens": counted.num_tokens,
        "distinct_tokens": counted.num_distinct_tokens,
        "visuals": len(counted.patches),
        "needed_flops": needed.total,
        "roofline": roofline(needed, shape, counted.num_distinct_tokens, len(counted.pairs)),
        "best_peer": best["name"],
        "ratio_to_best_peer": best["ratio"],
        "implementations": rows,
    }


def score_faults(figures: Figures, dtype: str) -> list[str]:
    """Sentences on scores of ours that are wrong, and on ours having failed."""
    faults = []
    for name, workload in figures.items():
        for row in workload["implementations"][:2]:
            difference = row["max_score_difference"]
            if row["failure"] is not None:
                faults.append(f"{name}: {row['label']} failed: {row['failure']}")
            elif dtype == "float32" and not (difference or 0.0) <= MAX_SCORE_DIFFERENCE:
                faults.append(
                    f"{name}: scores of {row['label']} are {difference:.1e} off plain "
                    f"transformers, over {MAX_SCORE_DIFFERENCE:.0e}"
                )
    return faults


def _alone(contender: Contender, counted: Counted, shape: ModelShape) -> Figures:
    """One implementation's own figures. Seconds are those of the whole workload: those of a part
    in proportion to the FLOPs.
    """
    names = ("name", "label", "versions", "work", "failure")
    figures: Figures = {name: getattr(contender, name) for name in names} | {"seconds": None}
    runs = contender.runs
    if contender.failure is not None or not runs:
        return figures
    flops = flops_of(contender.work, counted, shape).total
    part = flops_of(contender.work, counted.part(contender.timed.places), shape).total
    seconds = contender.seconds * flops / part
    return figures | {
        "seconds": seconds,
        "run_seconds": [run["seconds"] for run in runs],
        "run_cpu_seconds": [run["cpu_seconds"] for run in runs],
        "timed_pairs": contender.timed.num_pairs,
        "pairs_per_s": len(counted.pairs) / seconds,
        "tokens_per_s": counted.num_tokens / seconds,
        "flops": flops,
        "cpu_share": statistics.median_high(run["cpu_seconds"] / run["seconds"] for run in runs),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "peak_device_bytes": runs[-1]["peak_device_bytes"],
    }


def _difference(contender: Contender, reference: Contender | None) -> float | None:
    """The largest difference of a score, over all runs, from the reference's first run."""
    if reference is None or not reference.runs or not contender.runs:
        return None
    expected = reference.scores()[0]
    return max(
        (
            abs(score - expected[place])
            for scores in contender.scores()
            for place, score in scores.items()
            if place in expected
        ),
        default=None,
    )


def workload_table(name: str, figures: Figures) -> str:
    """Aligned plain text: no package needed, and it survives a log file."""
    rows = figures["implementations"]
    shown = [column for column in _COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    cells = [["", *(heading for heading, _, _ in shown), ""]]
    for row in rows:
        values = ((form, row.get(key)) for _, key, form in shown)
        texts = ["" if value is None else form(value) for form, value in values]
        cells.append([row["label"], *texts, _note(row, figures)])
    return (
        f"{name}: {figures['pairs']:,} pairs, {figures['tokens']:,} tokens "
        f"({figures['distinct_tokens']:,} distinct), {figures['visuals']:,} images or frame pairs\n"
        f"{aligned(cells)}\n{roofline_line(figures['roofline'])}"
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first and the last to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _note(row: Figures, figures: Figures) -> str:
    if row["failure"] is not None:
        return f"not measured: {row['failure']}"
    notes = ["best peer"] if row["name"] == figures["best_peer"] else []
    if row.get("timed_pairs", figures["pairs"]) < figures["pairs"]:
        notes.append(f"timed on {row['timed_pairs']:,} pairs")
    return ", ".join(notes)
