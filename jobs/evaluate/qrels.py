"""Relevance judgements (qrels): TREC text, BEIR and mteb tables, Parquet; knows nothing of runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.lines import by_blanks, by_tabs, scan_rows, text_lines
from shardrank.jobs.inputs.parquet import read_footer, read_range
from shardrank.jobs.inputs.parts import check_one_split
from shardrank.jobs.inputs.runs import ITERATIONS
from shardrank.jobs.storage import Location, list_files

Qrels = dict[str, dict[str, int]]
"""query id -> document id -> relevance; ids are compared as text."""

QUERY_COLUMNS = ("query_id", "query-id", "qid", "topic", "query")
DOCUMENT_COLUMNS = ("corpus-id", "corpus_id", "doc_id", "doc-id", "docid", "docno", "pid") + (
    "document_id",
)
RELEVANCE_COLUMNS = ("relevance", "score", "rel", "label")

_Row = tuple[str, Any, Sequence[Any]]
"""Place, values, and the keys there of query, document and relevance; the last may be None: 1."""


def load_qrels(path: str, columns: Mapping[str, str] | None = None) -> Qrels:
    """Read a file, a directory or a glob of one split; `columns` maps query_id, doc_id, relevance
    to names. A table of just two columns, as NanoBEIR's, lists what is relevant.

    Raises UsageError that names the file and the row where something is wrong.
    """
    files = [location for location, _ in list_files(Location.parse(path))]
    if not files:
        raise UsageError(f"qrels {path} does not exist or holds no files")
    check_one_split("qrels", files)
    qrels: Qrels = {}
    for file in files:
        for place, row, keys in _rows(file, columns or {}):
            query_id, doc_ids, relevance = (1 if key is None else row[key] for key in keys)
            for doc_id in doc_ids if isinstance(doc_ids, list) else [doc_ids]:  # as in NanoBEIR
                _add(qrels, place, query_id, doc_id, relevance)
    if not qrels:
        raise UsageError(f"qrels {path} holds no judgement")
    return qrels


def _add(qrels: Qrels, place: str, query_id: Any, doc_id: Any, relevance: Any) -> None:
    for what, id_ in (("query", query_id), ("document", doc_id)):
        if id_ is None:
            raise UsageError(f"{place}: the {what} id is missing")
        if not isinstance(id_, str | int) or isinstance(id_, bool):
            raise UsageError(f"{place}: the {what} id must be text or an integer, got {id_!r}")
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
    tables = read_range(file, 0, footer.num_rows, [name for name in names if name])
    for number, row in enumerate(row for table in tables for row in table.to_pylist()):
        yield f"{file}, row {number}", row, names


def _json_rows(file: Location, columns: Mapping[str, str]) -> Iterator[_Row]:
    for offset, _, row in scan_rows(file):
        place = f"{file}, byte {offset}"
        yield place, row, _choose_columns(place, list(row), columns)


def _text_rows(file: Location, columns: Mapping[str, str]) -> Iterator[_Row]:
    """Judgements in lines: a table where they have a header, else TREC's `query 0 document
    relevance`, or that without its 0.
    """
    order: tuple[int | None, ...] | None = None
    num = 0
    for position, (number, line) in enumerate(text_lines(file)):
        place = f"{file}, line {number}"
        fields = _fields(line)
        if position == 0 and _is_header(fields, columns):
            names = _choose_columns(place, fields, columns)
            order = tuple(None if name is None else fields.index(name) for name in names)
            num = len(fields)
            continue
        if order is None:
            order, num = _order_without_header(place, fields), len(fields)
        if len(fields) != num:
            raise UsageError(f"{place}: expected {num} columns as in the first line, got {line!r}")
        yield place, fields, order


def _fields(line: str) -> list[str]:
    """TREC's four columns by any white space, others by tabs where there are any: an id between
    two tabs may have spaces.
    """
    words = by_blanks(line)
    if "\t" not in line or (len(words) == 4 and words[1] in ITERATIONS):
        return words
    return by_tabs(line)


def _is_header(fields: Sequence[str], columns: Mapping[str, str]) -> bool:
    names = {*QUERY_COLUMNS, *columns.values()}
    return any(field in names for field in fields) and not fields[-1].lstrip("-").isdigit()


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
) -> list[str | None]:
    """The names for query, document and relevance; no relevance where there are two columns."""
    is_list = len(present) == 2 and "relevance" not in columns
    known = {"query_id": QUERY_COLUMNS, "doc_id": DOCUMENT_COLUMNS}
    known |= {} if is_list else {"relevance": RELEVANCE_COLUMNS}
    found = [_choose_column(place, present, columns.get(r), r, k) for r, k in known.items()]
    return [*found, None] if is_list else [*found]


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
