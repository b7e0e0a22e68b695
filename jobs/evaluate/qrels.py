"""Relevance judgements (qrels): TREC text, BEIR and mteb tables, Parquet; knows nothing of runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.lines import scan_rows, text_lines
from shardrank.jobs.inputs.parquet import read_footer, read_range
from shardrank.jobs.storage import Location, list_files

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> relevance; ids are compared as text."""

QUERY_COLUMNS = ("query_id", "query-id", "qid", "query")
DOCUMENT_COLUMNS = ("doc_id", "corpus-id", "corpus_id", "doc-id", "docid", "pid", "document_id")
RELEVANCE_COLUMNS = ("relevance", "score", "rel", "label")

_Row = tuple[str, Any, Any, Any]  # place, query id, document id, relevance


def load_qrels(path: str, columns: Mapping[str, str] | None = None) -> Qrels:
    """Read a file, a directory or a glob; `columns` maps query_id, doc_id, relevance to names.

    Raises UsageError that names the file and the row where something is wrong.
    """
    files = [location for location, _ in list_files(Location.parse(path))]
    if not files:
        raise UsageError(f"qrels {path} does not exist or holds no files")
    qrels: Qrels = {}
    for file in files:
        for place, query_id, doc_id, relevance in _rows(file, columns or {}):
            _add(qrels, place, query_id, doc_id, relevance)
    if not qrels:
        raise UsageError(f"qrels {path} holds no judgement")
    return qrels


def _add(qrels: Qrels, place: str, query_id: Any, doc_id: Any, relevance: Any) -> None:
    if query_id is None or doc_id is None:
        raise UsageError(f"{place}: the query id or the document id is missing")
    judged = qrels.setdefault(str(query_id), {})
    grade = _grade(place, relevance)
    if judged.setdefault(str(doc_id), grade) != grade:
        raise UsageError(
            f"{place}: query {query_id} and document {doc_id} are judged twice, "
            f"{judged[str(doc_id)]} and {grade}"
        )


def _grade(place: str, relevance: Any) -> int:
    try:
        value = float(relevance)
        grade = int(value)
    except (TypeError, ValueError, OverflowError):
        grade, value = 0, float("nan")
    if grade != value:
        raise UsageError(f"{place}: the relevance must be a whole number, got {relevance!r}")
    return grade


def _rows(file: Location, columns: Mapping[str, str]) -> Iterator[_Row]:
    if file.name.endswith(".parquet"):
        return _parquet_rows(file, columns)
    if file.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        return _json_rows(file, columns)
    return _text_rows(file, columns)


def _parquet_rows(file: Location, columns: Mapping[str, str]) -> Iterator[_Row]:
    footer = read_footer(file)
    names = _choose_columns(str(file), footer.schema.names, columns)
    number = 0
    for table in read_range(file, 0, footer.num_rows, names):
        values = (table.column(name).to_pylist() for name in names)
        for query_id, doc_id, relevance in zip(*values, strict=True):
            yield f"{file}, row {number}", query_id, doc_id, relevance
            number += 1


def _json_rows(file: Location, columns: Mapping[str, str]) -> Iterator[_Row]:
    for offset, row in scan_rows(file):
        place = f"{file}, byte {offset}"
        query_id, doc_id, relevance = _choose_columns(place, list(row), columns)
        yield place, row[query_id], row[doc_id], row[relevance]


def _text_rows(file: Location, columns: Mapping[str, str]) -> Iterator[_Row]:
    """With a header: a tab-separated table. Without: TREC's `query 0 document relevance`."""
    order: tuple[int, int, int] | None = None
    for position, (number, line) in enumerate(text_lines(file)):
        place = f"{file}, line {number}"
        fields = line.split("\t") if "\t" in line else line.split()
        if position == 0 and _is_header(fields, columns):
            query_id, doc_id, relevance = _choose_columns(place, fields, columns)
            order = fields.index(query_id), fields.index(doc_id), fields.index(relevance)
            continue
        if order is None:
            order = _order_without_header(place, fields)
        if len(fields) <= max(order):
            raise UsageError(f"{place}: expected at least {max(order) + 1} columns, got {line!r}")
        query_id, doc_id, relevance = (fields[index].strip() for index in order)
        yield place, query_id, doc_id, relevance


def _is_header(fields: Sequence[str], columns: Mapping[str, str]) -> bool:
    names = {*QUERY_COLUMNS, *columns.values()}
    return any(field.strip() in names for field in fields)


def _order_without_header(place: str, fields: Sequence[str]) -> tuple[int, int, int]:
    if len(fields) == 4:
        return 0, 2, 3
    if len(fields) == 3:
        return 0, 1, 2
    raise UsageError(
        f"{place}: expected `query 0 document relevance` or a header that names "
        f"{QUERY_COLUMNS[1]}, {DOCUMENT_COLUMNS[1]} and {RELEVANCE_COLUMNS[1]}, "
        f"got {len(fields)} columns"
    )


def _choose_columns(
    place: str, present: Sequence[str], columns: Mapping[str, str]
) -> tuple[str, str, str]:
    wanted = (
        ("query_id", QUERY_COLUMNS),
        ("doc_id", DOCUMENT_COLUMNS),
        ("relevance", RELEVANCE_COLUMNS),
    )
    query_id, doc_id, relevance = (
        _choose_column(place, present, columns.get(role), role, known) for role, known in wanted
    )
    return query_id, doc_id, relevance


def _choose_column(
    place: str, present: Sequence[str], mapped: str | None, role: str, known: Sequence[str]
) -> str:
    candidates = (mapped,) if mapped else known
    for name in candidates:
        if name in present:
            return name
    raise UsageError(
        f"{place}: no column for {role} (looked for {', '.join(candidates)}); "
        f"there are {', '.join(present)}"
    )
