"""The rows of one unit, whatever the input form, as queries with their candidates.

Finds what is wrong with ids before anything is decoded; contents are parsed by the engine's types.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import Content, parse_or_error
from shardrank.actors.errors import (
    ConflictingQuery,
    DocumentNotFound,
    DuplicateId,
    EmptyCandidates,
    InvalidContent,
    NullId,
    QueryNotFound,
    RerankError,
)
from shardrank.jobs.errors import UnreadableInput
from shardrank.jobs.inputs.columns import (
    DOCUMENT_COLUMNS,
    IDS,
    INPUT_QUERY_COLUMNS,
    OPTION_COLUMNS,
    QUERY_COLUMNS,
)
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.inputs.joins import NO_CANDIDATES, PLACE_COLUMNS
from shardrank.jobs.inputs.parquet import leaf_path, read_footer, read_range, to_rows
from shardrank.jobs.inputs.paths import value_at
from shardrank.jobs.inputs.tables import Table
from shardrank.jobs.units.contents import document_value, query_value, settled_ranks
from shardrank.jobs.units.plan import KEPT, PairsUnit, SetsUnit, Unit

Id = str | int | None
Row = dict[str, Any]
Place = tuple[int, int]  # file, position

DOCUMENT_NAME = "doc"
"""What messages call a document: its row has its id, and its place in a set says nothing."""


def document_name(job_input: JobInput) -> str:
    """What messages call what is scored, or embedded."""
    return "query" if job_input.corpus.name == "queries" else DOCUMENT_NAME


@dataclass(frozen=True, slots=True)
class Candidate:
    """One document of a query; `error` if it is known already that it cannot be scored.

    rank: whole once it is settled.
    """

    doc_id: Id
    document: Any
    rank: float | None = None
    score: float | None = None
    error: RerankError | None = None


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One query of the unit with at least one candidate; its order in the unit is `index`."""

    index: int
    query_id: Id
    query: Any
    instruction: str | None
    options: QueryOptions
    candidates: tuple[Candidate, ...]


Reads = Callable[[Iterator[Any], str], Iterator[Any]]
"""What rows are read through, with a name for them: jobs/run/attempts.py's Attempt.reads."""


def unwatched(rows: Iterator[Any], name: str) -> Iterator[Any]:
    return rows


def read_unit(job_input: JobInput, unit: Unit, reads: Reads = unwatched) -> Iterator[QueryRow]:
    """The unit's queries in order. Raises UnreadableInput if a file cannot be read."""
    if isinstance(unit, SetsUnit):
        return reads(_read_sets(job_input, unit), "sets")
    return _read_pairs(job_input, unit, reads)


def expected_ids(job_input: JobInput, unit: Unit) -> Iterator[tuple[Id, list[Id]]]:
    """(query id, document ids) as the input has them, reading no payload."""
    if isinstance(unit, PairsUnit):
        pairs = unit.pairs().select(["query_index", "query_id", "doc_id"]).to_pylist()
        for _, group in groupby(pairs, key=lambda pair: pair["query_index"]):
            rows = list(group)
            yield rows[0]["query_id"], [row["doc_id"] for row in rows]
        return
    table = job_input.queries
    query_id, candidates = table.columns["query_id"], table.columns["candidates"]
    doc_id = table.candidate_path("doc_id")
    footer = read_footer(table.files[unit.file].location)
    leaf = leaf_path(footer, candidates, doc_id) or candidates
    for row in _set_rows(table, unit, [query_id, leaf]):
        ids = [value_at(candidate, doc_id) for candidate in value_at(row, candidates) or []]
        yield value_at(row, query_id), ids or [None]


def _read_sets(job_input: JobInput, unit: SetsUnit) -> Iterator[QueryRow]:
    table = job_input.queries
    names = list(table.columns.values())
    for index, row in enumerate(_set_rows(table, unit, names)):
        named = table.named(row, table.columns)
        candidates = [_candidate(each, table) for each in named["candidates"] or []]
        yield _query_row(index, named, _with_settled_ranks(candidates))


def _set_rows(table: Table, unit: SetsUnit, columns: Sequence[str]) -> Iterator[Row]:
    file = table.files[unit.file]
    file.check_unchanged()
    for batch in read_range(file.location, unit.start, unit.stop, columns):
        for start in range(batch.num_rows):
            yield from to_rows(batch.slice(start, 1))


_OTHER_CONTENT = ("doc", "text", "image", "video")


def _candidate(value: Row | None, table: Table) -> Candidate:
    """A null in the list has no id."""
    value = value or {}
    mapped = {field: value_at(value, path) for field, path in table.candidate_fields.items()}
    if "pdf" not in mapped and any(value.get(name) is not None for name in _OTHER_CONTENT):
        value = {name: each for name, each in value.items() if name != "pdf"}
    value = value | mapped
    return Candidate(
        value.get("doc_id"), document_value(value), value.get("rank"), value.get("score")
    )


def _with_settled_ranks(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    ranks = np.array([each.rank for each in candidates], np.float64)  # null becomes NaN
    scores = np.array([each.score for each in candidates], np.float64)
    settled = settled_ranks(np.zeros(len(candidates), np.int64), ranks, scores).tolist()
    return tuple(
        replace(each, rank=_rank(rank)) for each, rank in zip(candidates, settled, strict=True)
    )


def _rank(value: float | None) -> int | None:
    """A rank that is no 32-bit number (NaN, infinite, a timestamp) is none."""
    return int(value) if value is not None and abs(value) < 1 << 31 else None


def _check_id(name: str, value: Id) -> None:
    """Raises UnreadableInput for one that no output could hold."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise UnreadableInput(f"{name} {value!r} is not UTF-8") from None


def _query_row(index: int, row: Row, candidates: tuple[Candidate, ...]) -> QueryRow:
    _check_id("query_id", row.get("query_id"))
    for candidate in candidates:
        _check_id("doc_id", candidate.doc_id)
    options, wrong = _options(row)
    query = query_value(row)
    if isinstance(query, RerankError):
        wrong = wrong or query
    if row.get("query_id") is None:
        wrong = NullId("query_id is null")
    if not candidates:
        candidates = (
            Candidate(None, None, error=wrong or EmptyCandidates("the query has no candidates")),
        )
    checked = _checked(candidates)
    if wrong is not None:  # of which what is kept has its row already
        checked = tuple(
            each if isinstance(each.error, Kept) else replace(each, error=wrong) for each in checked
        )
    return QueryRow(index, row.get("query_id"), query, row.get("instruction"), options, checked)


def _options(row: Row) -> tuple[QueryOptions, RerankError | None]:
    given = {name: row[name] for name in OPTION_COLUMNS if row.get(name) is not None}
    for name, value in given.items():
        if name != "fps" and isinstance(value, float) and value.is_integer():
            given[name] = int(value)  # a nullable integer column that pandas made a double
    try:
        return QueryOptions.from_mapping(given), None
    except ValueError as error:
        return QueryOptions(), InvalidContent(str(error))


def _checked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Null ids and ids seen before become errors; the first of equal ids is scored."""
    seen: set[Id] = set()
    checked = []
    for candidate in candidates:
        error = candidate.error
        if error is None and candidate.doc_id is None:
            error = NullId("doc_id is null")
        elif error is None and candidate.doc_id in seen:
            error = DuplicateId(f"doc_id {candidate.doc_id!r} appears before in this query")
        seen.add(candidate.doc_id)
        checked.append(replace(candidate, error=error))
    return tuple(checked)


class Kept(RerankError):
    """No error: the unit's earlier file has the result of this pair, and it is not scored again."""

    code = KEPT


def _read_pairs(job_input: JobInput, unit: PairsUnit, reads: Reads) -> Iterator[QueryRow]:
    pairs, is_kept = unit.pairs(), unit.is_kept()
    unscored = pairs.filter(pa.array(~is_kept))
    if job_input.form == "texts":
        columns = QUERY_COLUMNS if job_input.corpus.name == "queries" else DOCUMENT_COLUMNS
        texts = reads(_fetch(job_input.corpus, unscored, "doc", columns), "texts")
        return _text_rows(pairs, is_kept, job_input.corpus.name, dict(texts))
    if job_input.form == "run":
        queries = read_queries(job_input.queries, unscored, reads=reads)
        fetched = _fetch(job_input.corpus, unscored, "doc", DOCUMENT_COLUMNS)
    else:
        queries = read_queries(job_input.queries, unscored, INPUT_QUERY_COLUMNS, reads)
        columns = (*DOCUMENT_COLUMNS, *INPUT_QUERY_COLUMNS)
        fetched = _fetch(job_input.corpus, unscored, "doc", columns)
        fetched = _checked_documents(fetched, unscored, queries)
    return _paired_rows(pairs, is_kept, queries, dict(reads(fetched, "documents")))


def _text_rows(
    pairs: pa.Table, is_kept: np.ndarray, table: str, texts: Mapping[Place, Row]
) -> Iterator[QueryRow]:
    """Texts to embed, each with itself as its one candidate; those with its id again as others."""
    id_column, value = IDS[table], query_value if table == "queries" else document_value
    pairs = pairs.append_column("is_kept", pa.array(is_kept))
    groups = groupby(pairs.to_pylist(), key=lambda pair: pair["query_index"])
    for index, (_, group) in enumerate(groups):
        rows = list(group)
        text_id = rows[0]["doc_id"]
        _check_id(id_column, text_id)
        row = texts.get((rows[0]["doc_file"], rows[0]["doc_position"]), {})
        options, wrong = _options(row)
        if text_id is None:
            wrong = NullId(f"{id_column} is null")
        first = Candidate(text_id, value(row), error=Kept("") if rows[0]["is_kept"] else wrong)
        again = wrong or DuplicateId(f"{id_column} {text_id!r} appears before")
        others = [Candidate(text_id, None, error=again)] * (len(rows) - 1)
        yield QueryRow(index, text_id, None, row.get("instruction"), options, (first, *others))


_CONFLICT = "conflict"


def _checked_documents(
    fetched: Iterator[tuple[Place, Row]], pairs: pa.Table, queries: Mapping[Place, Row]
) -> Iterator[tuple[Place, Row]]:
    """The documents of pairs, which carry their query each: where it is not the one of the query's
    first row, the column that differs is named under _CONFLICT.
    """
    places = (pairs[name].to_pylist() for name in PLACE_COLUMNS)
    first_rows = {
        (f, p): (query_f, query_p) for query_f, query_p, f, p in zip(*places, strict=True)
    }
    for place, row in fetched:
        query = queries[first_rows[place]]
        document = {name: value for name, value in row.items() if name in DOCUMENT_COLUMNS}
        differing = [name for name in INPUT_QUERY_COLUMNS if row.get(name) != query.get(name)]
        yield place, document | ({_CONFLICT: differing[0]} if differing else {})


def read_ids(job_input: JobInput, unit: PairsUnit) -> Iterator[QueryRow]:
    """The unit without any content: what is wrong with ids and options is there all the same, and
    is the error that read_unit gives.
    """
    pairs = unit.pairs()
    options = [name for name in OPTION_COLUMNS if job_input.queries.has(name)]
    queries = read_queries(job_input.queries, pairs, options) if options else {}
    return _paired_rows(pairs, unit.is_kept(), queries, {})


def read_queries(
    table: Table,
    pairs: pa.Table,
    columns: Sequence[str] = QUERY_COLUMNS,
    reads: Reads = unwatched,
) -> dict[Place, Row]:
    """(file, position) -> row of every query that the pairs name."""
    return dict(reads(_fetch(table, pairs, "query", columns), "queries"))


def query_parts(
    row: Row, instruction: str | None
) -> tuple[Content | RerankError, str | None, QueryOptions]:
    """Query, instruction and options of a row of the queries table. Options that are wrong in
    themselves are the query's error, before what is wrong with its content.
    """
    options, wrong = _options(row)
    query = wrong or parse_or_error(Content.parse_query, query_value(row), "query")
    return query, row.get("instruction") if instruction is None else instruction, options


def read_documents(corpus: Table, pairs: pa.Table) -> Iterator[tuple[Any, list[Row]]]:
    """(document, its pairs) of pairs that are sorted by document, one document at a time."""
    groups = groupby(pairs.to_pylist(), key=lambda pair: (pair["doc_file"], pair["doc_position"]))
    fetched = _fetch(corpus, pairs, "doc", DOCUMENT_COLUMNS)
    for (place, group), (found, row) in zip(groups, fetched, strict=True):
        assert place == found
        yield document_value(row), list(group)


def _paired_rows(
    pairs: pa.Table,
    is_kept: np.ndarray,
    queries: Mapping[Place, Row],
    documents: Mapping[Any, Row],
) -> Iterator[QueryRow]:
    pairs = pairs.append_column("is_kept", pa.array(is_kept))
    groups = groupby(pairs.to_pylist(), key=lambda pair: pair["query_index"])
    for index, (_, group) in enumerate(groups):
        rows = list(group)
        query = queries.get((rows[0]["query_file"], rows[0]["query_position"]), {})
        candidates = tuple(_paired_candidate(pair, documents) for pair in rows)
        yield _paired_row(index, rows[0], query, candidates)


def _paired_row(index: int, pair: Row, query: Row, candidates: tuple[Candidate, ...]) -> QueryRow:
    if pair["query_file"] < 0 and pair["query_id"] is not None:
        error = QueryNotFound(f"query_id {pair['query_id']!r} is not in the queries table")
        candidates = tuple(replace(each, error=error) for each in candidates)
    named = {"query_id": pair["query_id"], **query}
    if pair["instruction"] is not None:
        named["instruction"] = pair["instruction"]
    return _query_row(index, named, candidates)


def _paired_candidate(pair: Row, documents: Mapping[Place, Row]) -> Candidate:
    doc_id = pair["doc_id"]
    row = documents.get((pair["doc_file"], pair["doc_position"]))
    error: RerankError | None = Kept("") if pair["is_kept"] else None
    if pair["doc_file"] == NO_CANDIDATES:
        error = EmptyCandidates("the query has no candidates")
    elif pair["doc_file"] < 0 and doc_id is not None:
        error = DocumentNotFound(f"doc_id {doc_id!r} is not in the corpus")
    elif row is not None and _CONFLICT in row:
        error = ConflictingQuery(
            f"query_id {pair['query_id']!r} has another {row[_CONFLICT]} in its first row"
        )
    document = None if row is None else document_value(row)
    return Candidate(doc_id, document, _rank(pair["rank"]), pair["score"], error)


def pair_row(query: QueryRow, doc_index: int, candidate: Candidate) -> Row:
    """A row of scores.py's row_schema."""
    return {
        "query_index": query.index,
        "doc_index": doc_index,
        "query_id": query.query_id,
        "doc_id": candidate.doc_id,
        "first_stage_rank": candidate.rank,
        "first_stage_score": candidate.score,
        "error_code": candidate.error.code if candidate.error else None,
        "error": str(candidate.error) if candidate.error else None,
    }


def _fetch(
    table: Table, pairs: pa.Table, side: str, columns: Sequence[str]
) -> Iterator[tuple[Place, Row]]:
    """((file, position), row) of everything that the pairs name, each once, in that order."""
    files = pairs[f"{side}_file"].to_numpy()
    positions = pairs[f"{side}_position"].to_numpy()
    for file in np.unique(files[files >= 0]).tolist():
        for position, row in table.fetch(file, positions[files == file], columns):
            yield (file, position), row
