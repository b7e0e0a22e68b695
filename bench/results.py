"""Measurements to figures: rates, ratios, bounds, shares, differences of scores. Plain data out."""

from collections.abc import Sequence
from typing import Any

from bench.contenders import Contender
from bench.flops import ModelShape
from bench.matmul import MatmulRates
from bench.roofline import roofline
from bench.settings import MAX_SCORE_DIFFERENCE, OURS, OURS_ONE, REFERENCE
from bench.work import Counted, flops_of

Figures = dict[str, Any]


def workload_figures(
    contenders: Sequence[Contender], counted: Counted, shape: ModelShape, rates: MatmulRates
) -> Figures:
    """One workload's figures, with a list of `implementations`, ours first."""
    needed = flops_of("needed", counted, shape)
    by_name = {contender.name: contender for contender in contenders}
    reference = by_name.get(REFERENCE)
    rows = [
        _figures(contender, counted, shape)
        | {"max_score_difference": _difference(contender, reference)}
        for contender in contenders
    ]
    for row in rows:
        if row["seconds"]:
            row["share_of_matmul_rate"] = rates.seconds(needed) / row["seconds"]
    _compare(rows, needed.total)
    best = _best_peer(rows)
    return {
        "pairs": len(counted.pairs),
        "tokens": counted.num_tokens,
        "distinct_tokens": counted.num_distinct_tokens,
        "visuals": len(counted.patches),
        "needed_flops": needed.total,
        "roofline": roofline(needed, shape, counted.num_distinct_tokens, len(counted.pairs)),
        "best_peer": best["name"] if best else None,
        "ratio_to_best_peer": best["ratio"] if best else None,
        "implementations": rows,
    }


def score_faults(figures: Figures, dtype: str) -> list[str]:
    """Sentences on scores of ours that are wrong, and on ours having failed."""
    faults = []
    for name, workload in figures.items():
        for row in workload["implementations"]:
            if row["name"] not in (OURS, OURS_ONE):
                continue
            difference = row["max_score_difference"]
            if row["failure"] is not None:
                faults.append(f"{name}: {row['label']} failed: {row['failure']}")
            elif dtype == "float32" and not (difference or 0.0) <= MAX_SCORE_DIFFERENCE:
                faults.append(
                    f"{name}: scores of {row['label']} are {difference:.1e} off plain "
                    f"transformers, over {MAX_SCORE_DIFFERENCE:.0e}"
                )
    return faults


def _figures(contender: Contender, counted: Counted, shape: ModelShape) -> Figures:
    """Of one implementation alone. Seconds are those of the whole workload: of a part, in
    proportion to the FLOPs."""
    figures: Figures = {
        "name": contender.name,
        "label": contender.label,
        "versions": contender.versions,
        "work": contender.work,
        "failure": contender.failure,
        "seconds": None,
    }
    if contender.failure is not None or not contender.runs:
        return figures
    flops = flops_of(contender.work, counted, shape).total
    part = flops_of(contender.work, counted.part(contender.timed.places), shape).total
    seconds = contender.seconds * flops / part
    return figures | {
        "seconds": seconds,
        "run_seconds": [run["seconds"] for run in contender.runs],
        "run_cpu_seconds": [run["cpu_seconds"] for run in contender.runs],
        "timed_pairs": contender.timed.num_pairs,
        "pairs_per_s": len(counted.pairs) / seconds,
        "tokens_per_s": counted.num_tokens / seconds,
        "flops": flops,
        "cpu_share": _median_ratio(contender, "cpu_seconds"),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in contender.runs),
        "peak_device_bytes": contender.runs[-1]["peak_device_bytes"],
    }


def _median_ratio(contender: Contender, name: str) -> float:
    ratios = sorted(run[name] / run["seconds"] for run in contender.runs)
    return float(ratios[len(ratios) // 2])


def _compare(rows: list[Figures], needed: float) -> None:
    """Of every other implementation: how many times faster ours is, could be, and the share."""
    ours = rows[0]
    for row in rows[1:]:
        if row["seconds"]:
            row["bound"] = row["flops"] / needed
            if ours["seconds"]:
                row["ratio"] = row["seconds"] / ours["seconds"]
                row["share_of_bound"] = row["ratio"] / row["bound"]


def _best_peer(rows: list[Figures]) -> Figures | None:
    peers = [row for row in rows if row["name"] not in (OURS, OURS_ONE) and "ratio" in row]
    return min(peers, key=lambda row: row["seconds"], default=None)


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
