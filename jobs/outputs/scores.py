"""The score rows: their columns, and how the candidates of a query are ranked."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardrank.actors.data import Embedding, PairScore
from shardrank.jobs.errors import JobError
from shardrank.jobs.inputs.columns import IDS
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.units.plan import KEPT

When = Literal[
    "indexed",
    "placed",
    "known",
    "scored",
    "embedded",
    "counted",
    "ranked",
    "error",
    "measured",
    "chunk",
]

COLUMNS: tuple[tuple[str, pa.DataType | None, When], ...] = (
    ("query_index", pa.int32(), "indexed"),
    ("doc_index", pa.int32(), "indexed"),
    ("place", pa.int64(), "placed"),
    ("query_id", None, "known"),
    ("doc_id", None, "known"),
    ("score", pa.float32(), "scored"),
    ("logit", pa.float32(), "scored"),
    ("embedding", pa.list_(pa.float32()), "embedded"),
    ("rank", pa.int32(), "ranked"),
    ("first_stage_rank", pa.int32(), "known"),
    ("first_stage_score", pa.float64(), "known"),
    ("num_tokens", pa.int32(), "counted"),
    ("num_visual_tokens", pa.int32(), "counted"),
    ("is_truncated", pa.bool_(), "counted"),
    ("error_code", pa.large_string(), "error"),
    ("error", pa.large_string(), "error"),
    ("vision_hits", pa.int64(), "measured"),
    ("vision_misses", pa.int64(), "measured"),
    ("seconds", pa.float64(), "measured"),
    ("unit", pa.int32(), "chunk"),
    ("chunk", pa.int32(), "chunk"),
    ("is_last", pa.bool_(), "chunk"),
)
"""A row on its way from its unit to its score file; the ids have the types that the input has.

Before it is scored a row is indexed within its unit, or has its place in document-major order;
known of it are its ids and first stage, and an error, if it is not to be scored. Scoring fills in
`scored` and `counted`, embedding `embedded` and `counted`, or an error; ranking adds the rank.
Measured, in a chunk's first row: what the scorer's vision cache had and had not, null without one,
and the time that preparing and scoring took.
`chunk`: which of which unit it is in.
"""

_TYPES = {name: kind for name, kind, _ in COLUMNS}


def names(*when: When) -> list[str]:
    """The names of a row's columns, in the order of COLUMNS."""
    return [name for name, _, each in COLUMNS if each in when]


Result = PairScore | Embedding


def result_names(kind: type[Result]) -> list[str]:
    """The columns that a result fills in, each from its own field of that name."""
    return names("scored" if kind is PairScore else "embedded", "counted")


def _schema(when: Sequence[When], job_input: JobInput | None = None) -> pa.Schema:
    types = dict(_TYPES)
    if job_input is not None:
        types |= {"query_id": job_input.query_id_type, "doc_id": job_input.doc_id_type}
    return pa.schema([(name, types[name]) for name in names(*when)])


PLACE_SCHEMA = _schema(["placed", "error"])
"""As row_schema, in document-major order."""
DOCUMENT_SCHEMA = _schema(["placed", "scored", "counted", "error"])
"""The columns of the files by document."""


def row_schema(job_input: JobInput) -> pa.Schema:
    """What is known of a pair before it is scored; an error here means it will not be."""
    return _schema(["indexed", "known", "error"], job_input)


def score_schema(job_input: JobInput) -> pa.Schema:
    """The columns of `scores/*.parquet`, or of `embeddings/*.parquet`."""
    if job_input.vector is None:
        return _schema(["known", "scored", "counted", "ranked", "error"], job_input)
    text_id = IDS[job_input.corpus.name], job_input.doc_id_type
    rest = _schema(["counted", "error"])
    return pa.schema([text_id, ("embedding", job_input.vector), *rest])


def filled(rows: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    """The rows with these columns, lists or arrays, in the place of what they had there."""
    rows = rows.drop_columns([name for name in values if name in rows.schema.names])
    for name, column in values.items():
        is_list = isinstance(column, list)
        rows = rows.append_column(name, pa.array(column, _TYPES[name]) if is_list else column)
    return rows


def with_results(
    rows: pa.Table, found: Sequence[Result], kind: type[Result] = PairScore
) -> pa.Table:
    """Fill in the results of the rows without an error, in order; the others get null ones.

    kind: of the results, of which there may be none.
    """
    codes = rows["error_code"].to_pylist()
    assert codes.count(None) == len(found), f"{len(found)} results for {codes.count(None)} rows"
    remaining = iter(found)
    results = [next(remaining) if code is None else kind() for code in codes]
    known = list(zip(results, codes, rows["error"].to_pylist(), strict=True))
    return filled(
        rows,
        {name: [getattr(result, name) for result in results] for name in result_names(kind)}
        | {
            "error_code": [r.error.code if r.error else code for r, code, _ in known],
            "error": [str(r.error) if r.error else message for r, _, message in known],
        },
    )


def with_known(rows: pa.Table, scored: pa.Table) -> pa.Table:
    """The same, of scores by document: null in `scored` for rows with an error of their own."""
    unscored = {name: getattr(PairScore(), name) for name in result_names(PairScore)}
    values = {
        name: scored[name] if value is None else pc.fill_null(scored[name], value)
        for name, value in unscored.items()
    }
    errors = {name: pc.coalesce(rows[name], scored[name]) for name in names("error")}
    return filled(rows, values | errors)


def with_figures(scored: pa.Table, figures: Sequence[float | None]) -> pa.Table:
    """Add what was measured to a chunk's rows."""
    rest = [None] * (scored.num_rows - 1)
    values = zip(names("measured"), figures, strict=True)
    return filled(scored, {name: [value, *rest][: scored.num_rows] for name, value in values})


def lookups_of(scored: pa.Table) -> tuple[int, int] | None:
    """(hits, misses) of the chunks in a table, None where the scorer has no vision cache."""
    hits, misses = (pc.sum(scored[name]).as_py() for name in ("vision_hits", "vision_misses"))
    return None if hits is None else (hits, misses)


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
    results = result_names(Embedding if "embedding" in earlier.schema.names else PairScore)
    kept = {name: taken[name].cast(_TYPES[name]) for name in (*results, *names("error"))}
    return filled(rows, {n: pc.if_else(is_kept, values, rows[n]) for n, values in kept.items()})


UNIT_KEY = b"shardrank"


def with_summary(table: pa.Table, rows: pa.Table, **more: Any) -> pa.Table:
    """The table as a file of a unit, whose footer says what is in it and how long it took.

    rows: the unit's, with what was measured, if it was. more: what else the footer says.
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
