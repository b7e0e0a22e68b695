"""Run files of text: which column is what, told by their number and values.

Knows TREC's form and its kin of 3 to 7 columns; what can be read in two ways is refused.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter

import numpy as np
import pyarrow as pa

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs import lines
from shardrank.jobs.inputs.discovery import JSON_LINES, PARQUET, kind_of
from shardrank.jobs.inputs.parts import check_one_split
from shardrank.jobs.storage import Location, list_files

_READ_AS = (
    "`query_id Q0 doc_id rank score tag` (TREC; without the tag, or with one more column), "
    "`query_id doc_id rank score` (a tag may follow), `query_id doc_id rank`, "
    "`query_id doc_id score`, what a header line names, and tables in *.parquet or *.jsonl"
)
ITERATIONS = frozenset(("Q0", "q0", "0"))
"""What stands in the second column of TREC's runs and qrels."""
_HEADER_NAMES = {
    "query_id": ("query_id", "query-id", "qid", "topic"),
    "doc_id": ("doc_id", "corpus-id", "corpus_id", "docid", "docno", "pid"),
    "rank": ("rank",),
    "score": ("score",),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a file's lines have what. has_q0: the second column is TREC's in every line.
    is_value: the score of three columns may be a rank, which the whole file says.
    """

    num: int
    query_id: int = 0
    doc_id: int = 1
    rank: int | None = None
    score: int | None = None
    is_value: bool = False
    has_q0: bool = False
    is_header: bool = False


def run_files(location: Location) -> list[Location]:
    """The files of a run, which any name may have."""
    return [file for file, _ in list_files(location)]


def is_text_run(files: Sequence[Location]) -> bool:
    """Whether these hold lines of columns, and no tables."""
    return not any(kind_of(file.name) in (PARQUET, JSON_LINES) for file in files)


def read_text_run(
    files: Sequence[Location], names: Mapping[str, str | tuple[str, ...]]
) -> pa.Table:
    """query_id, doc_id, rank, score (null where there is none) of all lines in their order.

    names: the job's name of a column -> what a header may call it. Raises UsageError that names the
    line.
    """
    check_one_split("run", files)
    return pa.concat_tables([_read_file(file, names) for file in files])


def _read_file(file: Location, names: Mapping[str, str | tuple[str, ...]]) -> pa.Table:
    lined = lines.text_lines(file)
    number, first = next(lined, (0, ""))
    if not number:
        return _SCHEMA.empty_table().drop_columns(["line"])
    columns = _find_columns(f"run: {file}, line {number}", first, names)
    body = lined if columns.is_header else chain([(number, first)], lined)
    rows = _rows(file, columns, body, "\t" in first)
    tables = [_as_table(part) for part in iter(lambda: list(islice(rows, 65_536)), [])]
    table = pa.concat_tables([_as_table([]), *tables])
    if columns.is_value and _are_ranks(file, table):
        table = table.rename_columns(["line", "query_id", "doc_id", "score", "rank"])
    return table.select(["query_id", "doc_id", "rank", "score"])


_SCHEMA = pa.schema(
    [("line", pa.int64()), ("query_id", pa.large_string()), ("doc_id", pa.large_string())]
    + [("rank", pa.float64()), ("score", pa.float64())]
)
Row = tuple[int, str, str, float | None, float | None]  # as in _SCHEMA


def _rows(
    file: Location, columns: Columns, lined: Iterable[tuple[int, str]], is_tabbed: bool
) -> Iterator[Row]:
    number, num_rows, are_q0 = 0, 0, True
    try:
        for number, line in lined:
            fields = _fields(line, columns.num, is_tabbed)
            num_rows, are_q0 = num_rows + 1, are_q0 and fields[1] in ITERATIONS
            if columns.has_q0 and not are_q0:
                raise ValueError(f"the second column is {fields[1]!r}, and Q0 or 0 before")
            rank, score = _rank(fields, columns.rank), _score(fields, columns.score)
            yield number, fields[columns.query_id], fields[columns.doc_id], rank, score
        if are_q0 and num_rows > 1 and columns.doc_id == 1 and not columns.is_header:
            raise ValueError(
                f"the second of {columns.num} columns is Q0 or 0 in every line up to this, as in "
                f"qrels; what is read is {_READ_AS}"
            )
    except ValueError as error:
        raise UsageError(f"run: {file}, line {number}: {error}") from error


def _as_table(rows: Sequence[Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(_SCHEMA)
    return pa.table([list(column) for column in columns], schema=_SCHEMA)


def _are_ranks(file: Location, table: pa.Table) -> bool:
    """Whether the last of three columns has ranks, which are whole and never fall within a query;
    scores have a fraction somewhere. Raises UsageError where it could be both.
    """
    values = table["score"].to_numpy()
    if not (np.isfinite(values) & (values == np.rint(values))).all():
        return False
    codes = table["query_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    is_fall = (np.diff(codes[order]) == 0) & (np.diff(values[order]) < 0)
    if not is_fall.any():
        return True
    before, row = min(zip(order[:-1][is_fall], order[1:][is_fall], strict=True), key=itemgetter(1))
    number, query_id = (table[name][row].as_py() for name in ("line", "query_id"))
    raise UsageError(
        f"run: {file}, line {number}: the third of 3 columns falls from {values[before]:g} to "
        f"{values[row]:g} in query {query_id!r}, and all are whole: as ranks they would rise, and "
        "as scores have a fraction somewhere; write `query_id doc_id rank score`"
    )


def _find_columns(place: str, line: str, names: Mapping[str, str | tuple[str, ...]]) -> Columns:
    """What the first line says; raises UsageError where that is nothing, or two things."""
    splits = [lines.by_blanks(line)] + ([lines.by_tabs(line)] if "\t" in line else [])
    found = [(fields, _of_values(fields) or _of_header(fields, names)) for fields in splits]
    known = [(fields, columns) for fields, columns in found if columns is not None]
    if not known and line.startswith(("{", "[")):
        raise UsageError(f"{place}: {_shown(line)} is JSON; what is read is {_READ_AS}")
    if not known:
        num = " or ".join(dict.fromkeys(str(len(fields)) for fields in reversed(splits)))
        raise UsageError(f"{place}: {_shown(line)} has {num} columns; what is read is {_READ_AS}")
    if known[0] != known[-1]:
        raise UsageError(
            f"{place}: {_shown(line)} has {len(known[0][0])} columns by any white space and "
            f"{len(known[-1][0])} by tabs, and both could be: write one separator throughout"
        )
    return known[0][1]


def _of_values(fields: Sequence[str]) -> Columns | None:
    """The columns of a line without a header, by their number and by where numbers stand."""
    num = len(fields)
    is_number = [not math.isnan(_as_float(field)) for field in fields]
    has_q0 = num > 1 and fields[1] in ITERATIONS
    if num == 3 and is_number[2]:
        return Columns(3, score=2, is_value=True)
    if num in (5, 7) and has_q0 and all(is_number[3:5]) and not (num == 7 and is_number[5]):
        return Columns(num, doc_id=2, rank=3, score=4, has_q0=True)
    if num in (4, 5) and all(is_number[2:4]) and fields[1] != "Q0":
        return Columns(num, rank=2, score=3)
    if num == 6 and all(is_number[3:5]):
        return Columns(6, doc_id=2, rank=3, score=4)
    return None


def _of_header(fields: Sequence[str], names: Mapping[str, str | tuple[str, ...]]) -> Columns | None:
    found = {}
    for column, known in _HEADER_NAMES.items():
        mapped = names.get(column, ())
        wanted = (mapped,) if isinstance(mapped, str) else (*mapped, *known)
        found[column] = next((fields.index(name) for name in wanted if name in fields), None)
    query_id, doc_id = found["query_id"], found["doc_id"]
    if query_id is None or doc_id is None:
        return None
    return Columns(len(fields), query_id, doc_id, found["rank"], found["score"], is_header=True)


def _fields(line: str, num: int, is_tabbed: bool) -> list[str]:
    """A line as its file's first one was split, or else by the other separator."""
    for split in (
        (lines.by_tabs, lines.by_blanks) if is_tabbed else (lines.by_blanks, lines.by_tabs)
    ):
        fields = split(line)
        if len(fields) == num:
            return fields
    raise ValueError(
        f"expected {num} columns as in the first line, got {len(lines.by_blanks(line))}: "
        f"{_shown(line)}"
    )


def _rank(fields: Sequence[str], column: int | None) -> float | None:
    rank = _score(fields, column)
    if column is not None and rank is not None and not rank.is_integer():
        raise ValueError(
            f"column {column + 1} is the rank and must be a whole number, got {fields[column]!r}"
        )
    return rank


def _score(fields: Sequence[str], column: int | None) -> float | None:
    if column is None:
        return None
    score = _as_float(fields[column])
    if math.isnan(score):
        raise ValueError(f"{fields[column]!r} in column {column + 1} is not a number")
    return score


def _as_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _shown(line: str) -> str:
    return repr(line if len(line) <= 80 else f"{line[:77]}...")
