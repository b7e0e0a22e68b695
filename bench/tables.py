"""Figures as aligned plain text: no package needed, and it survives a log file."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.results import Figures
from bench.roofline import roofline_line

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


def workload_table(name: str, figures: Figures) -> str:
    title = (
        f"{name}: {figures['pairs']:,} pairs, {figures['tokens']:,} tokens "
        f"({figures['distinct_tokens']:,} distinct), {figures['visuals']:,} images or frame pairs"
    )
    rows = figures["implementations"]
    shown = [column for column in _COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    cells = [["", *(heading for heading, _, _ in shown), ""]]
    for row in rows:
        values = (row.get(key) for _, key, _ in shown)
        formats = (form for _, _, form in shown)
        texts = [
            "" if value is None else form(value)
            for value, form in zip(values, formats, strict=True)
        ]
        cells.append([row["label"], *texts, _note(row, figures)])
    return f"{title}\n{aligned(cells)}\n{roofline_line(figures['roofline'])}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first and the last to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
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
    notes = []
    if row["name"] == figures["best_peer"]:
        notes.append("best peer")
    if row.get("timed_pairs", figures["pairs"]) < figures["pairs"]:
        notes.append(f"timed on {row['timed_pairs']:,} pairs")
    return ", ".join(notes)
