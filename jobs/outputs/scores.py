"""The score rows: their columns, and how the candidates of a query are ranked."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardrank.actors.data import PairScore
from shardrank.jobs.errors import JobError
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.units.plan import KEPT

UNIT_COLUMNS = (("unit", pa.int32()), ("chunk", pa.int32()), ("is_last", pa.bool_()))
"""Which chunk of which unit a row belongs to; dropped when the unit is written."""

FIGURES = (
    ("vision_hits", pa.int64()),
    ("vision_misses", pa.int64()),
    ("seconds", pa.float64()),
)
"""In a chunk's first row: what the scorer's vision cache had and had not, null without one, and
the time that preparing and scoring took. Not among the columns that are written.
"""

PLACE_SCHEMA = pa.schema(
    [("place", pa.int64()), ("error_code", pa.large_string()), ("error", pa.large_string())]
)
"""As row_schema, in document-major order."""


def row_schema(job_input: JobInput) -> pa.Schema:
    """What is known of a pair before it is scored; an error here means it will not be."""
    return pa.schema(
        [
            ("query_index", pa.int32()),
            ("doc_index", pa.int32()),
            ("query_id", job_input.query_id_type),
            ("doc_id", job_input.doc_id_type),
            ("first_stage_rank", pa.int32()),
            ("first_stage_score", pa.float64()),
            ("error_code", pa.large_string()),
            ("error", pa.large_string()),
        ]
    )


def score_schema(job_input: JobInput) -> pa.Schema:
    """The columns of `scores/*.parquet`."""
    return pa.schema(
        [
            ("query_id", job_input.query_id_type),
            ("doc_id", job_input.doc_id_type),
            ("score", pa.float32()),
            ("logit", pa.float32()),
            ("rank", pa.int32()),
            ("first_stage_rank", pa.int32()),
            ("first_stage_score", pa.float64()),
            ("num_tokens", pa.int32()),
            ("num_visual_tokens", pa.int32()),
            ("is_truncated", pa.bool_()),
            ("error_code", pa.large_string()),
            ("error", pa.large_string()),
        ]
    )


def with_scores(rows: pa.Table, scores: Sequence[PairScore]) -> pa.Table:
    """Fill in the scores of the rows without an error, in order; the others get null scores."""
    codes = rows["error_code"].to_pylist()
    messages = rows["error"].to_pylist()
    assert codes.count(None) == len(scores), f"{len(scores)} scores for {codes.count(None)} pairs"
    remaining = iter(scores)
    results = [next(remaining) if code is None else PairScore() for code in codes]
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "score": (pa.float32(), [r.score for r in results]),
        "logit": (pa.float32(), [r.logit for r in results]),
        "num_tokens": (pa.int32(), [r.num_tokens for r in results]),
        "num_visual_tokens": (pa.int32(), [r.num_visual_tokens for r in results]),
        "is_truncated": (pa.bool_(), [r.is_truncated for r in results]),
        "error_code": (
            pa.large_string(),
            [r.error.code if r.error else code for r, code in zip(results, codes, strict=True)],
        ),
        "error": (
            pa.large_string(),
            [str(r.error) if r.error else m for r, m in zip(results, messages, strict=True)],
        ),
    }
    scored = rows.drop_columns(["error_code", "error"])
    for name, (kind, values) in columns.items():
        scored = scored.append_column(name, pa.array(values, kind))
    return scored


def with_figures(scored: pa.Table, figures: Sequence[float | None]) -> pa.Table:
    """Add FIGURES to a chunk's rows."""
    for (name, kind), value in zip(FIGURES, figures, strict=True):
        values = [value, *[None] * (scored.num_rows - 1)]
        scored = scored.append_column(name, pa.array(values[: scored.num_rows], kind))
    return scored


def lookups_of(scored: pa.Table) -> tuple[int, int] | None:
    """(hits, misses) of the chunks in a table, None where the scorer has no vision cache."""
    hits, misses = (pc.sum(scored[name]).as_py() for name in ("vision_hits", "vision_misses"))
    return None if hits is None else (hits, misses)


_RESULT = (
    *("score", "logit", "num_tokens", "num_visual_tokens", "is_truncated"),
    *("error_code", "error"),
)


def with_kept(rows: pa.Table, earlier: pa.Table, id_errors: Collection[str]) -> pa.Table:
    """Put in what the unit's earlier file has of the rows that are marked as kept.

    id_errors: the codes of its rows that are no results. Raises JobError for a pair that it lacks.
    """
    ids = zip(earlier["query_id"].to_pylist(), earlier["doc_id"].to_pylist(), strict=True)
    codes = earlier["error_code"].to_pylist()
    known = {pair: i for i, pair in enumerate(ids) if codes[i] not in id_errors}
    places = [
        known.get((row["query_id"], row["doc_id"])) if row["error_code"] == KEPT else None
        for row in rows.select(["query_id", "doc_id", "error_code"]).to_pylist()
    ]
    if rows["error_code"].to_pylist().count(KEPT) != len(places) - places.count(None):
        raise JobError("a score file lacks pairs that it had as the job began; run it again")
    is_kept = pc.is_valid(pa.array(places, pa.int64()))
    taken = earlier.take(pa.array(places, pa.int64()))
    for name in _RESULT:
        column = rows.schema.get_field_index(name)
        values = taken[name].cast(rows.schema.field(name).type)
        rows = rows.set_column(column, name, pc.if_else(is_kept, values, rows[name]))
    return rows


UNIT_KEY = b"shardrank"


def with_summary(table: pa.Table, rows: pa.Table, **more: Any) -> pa.Table:
    """The table as a file of a unit, whose footer says what is in it and how long it took.

    rows: the unit's, with FIGURES where they were measured. more: what else the footer says.
    """
    errors = Counter(code for code in rows["error_code"].to_pylist() if code is not None)
    seconds = pc.sum(rows["seconds"]).as_py() if "seconds" in rows.schema.names else None
    summary = {"errors": dict(errors), "seconds": None if seconds is None else round(seconds, 3)}
    return table.replace_schema_metadata({UNIT_KEY: json.dumps(summary | more)})


def ranked(rows: pa.Table) -> pa.Table:
    """One unit's rows by query, best first, with `rank` from 1; failed pairs last, null rank.

    Equal logits keep the first stage's order, then the input's.
    """
    query = rows["query_index"].to_numpy()
    logit = rows["logit"].to_numpy()  # null becomes NaN
    failed = np.isnan(logit)
    first_stage = pc.fill_null(rows["first_stage_rank"], np.iinfo(np.int32).max).to_numpy()
    order = np.lexsort((rows["doc_index"].to_numpy(), first_stage, -logit, failed, query))
    sorted_query = query[order]
    starts = np.flatnonzero(np.diff(sorted_query, prepend=-1))
    lengths = np.diff(np.append(starts, len(order)))
    ranks = np.arange(len(order)) - np.repeat(starts, lengths) + 1
    rows = rows.take(pa.array(order))
    return rows.append_column("rank", pa.array(ranks, pa.int32(), mask=failed[order]))


def nested(scores: pa.Table, query_index: np.ndarray) -> pa.Table:
    """One row a query: query_id and its ranking, a list of structs in the order of `scores`."""
    starts = np.flatnonzero(np.diff(query_index, prepend=-1))
    offsets = np.append(starts, len(query_index)).astype(np.int32)
    names = [name for name in scores.schema.names if name != "query_id"]
    structs = pa.StructArray.from_arrays(
        [scores[name].combine_chunks() for name in names],
        fields=[scores.schema.field(name) for name in names],
    )
    ranking = pa.ListArray.from_arrays(pa.array(offsets), structs)
    return pa.table({"query_id": scores["query_id"].take(pa.array(starts)), "ranking": ranking})
