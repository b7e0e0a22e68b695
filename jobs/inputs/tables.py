"""One input table: its files, and which of their columns hold what the job needs.

Tables: `input` (candidate sets or pairs), or `queries`, `corpus` and `run`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from pyarrow import fs

from shardrank.actors.config import QueryOptions
from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs import lines, parquet
from shardrank.jobs.inputs.parquet import Footer
from shardrank.jobs.storage import Location, list_files

OPTION_COLUMNS = tuple(field.name for field in fields(QueryOptions))
QUERY_COLUMNS = ("query", "text", "image", "video", "instruction", *OPTION_COLUMNS)
DOCUMENT_COLUMNS = ("doc", "title", "text", "image", "video")

TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "input": ("query_id", "doc_id", "query", "doc", "candidates", "rank", "score")
    + ("instruction", *OPTION_COLUMNS),
    "queries": ("query_id", *QUERY_COLUMNS),
    "corpus": ("doc_id", *DOCUMENT_COLUMNS),
    "run": ("query_id", "doc_id", "rank", "score", "doc_ids"),
    "instructions": ("query_id", "instruction"),
}
"""What `--map TABLE.COLUMN=NAME` may name."""


@dataclass(frozen=True, slots=True)
class DataFile:
    location: Location
    size_bytes: int
    mtime_ns: int
    is_parquet: bool

    def check_unchanged(self) -> None:
        """Raises UnreadableInput if it is no longer the file that the job was planned with.

        By size and time, of which an object store's may be known to the second alone.
        """
        info = self.location.info()
        if info.type == fs.FileType.NotFound:
            raise UnreadableInput(f"{self.location} is gone since the job was planned")
        unit = 1 if self.location.is_local else 10**9
        found = info.size, (info.mtime_ns or 0) // unit
        if found != (self.size_bytes, self.mtime_ns // unit):
            raise UnreadableInput(
                f"{self.location} has changed since the job was planned: {info.size:,} bytes, and "
                f"then {self.size_bytes:,}"
            )


@dataclass(frozen=True, slots=True)
class Table:
    """`columns`: the job's name of a column -> its name in the files, for those that are there."""

    name: str
    files: tuple[DataFile, ...]
    columns: dict[str, str]

    def has(self, column: str) -> bool:
        return column in self.columns

    def fetch(
        self, file_index: int, positions: np.ndarray, columns: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(position, row under the job's names) of the wanted rows of one file, each once."""
        file = self.files[file_index]
        file.check_unchanged()
        names = {self.columns[column]: column for column in columns if column in self.columns}
        reader = parquet.fetch_rows if file.is_parquet else lines.fetch_rows
        for position, row in reader(file.location, positions, list(names)):
            yield position, {column: row[name] for name, column in names.items()}


@dataclass(frozen=True, slots=True)
class OpenedTable:
    """A table with its footers, which only the driver needs (None for line files)."""

    table: Table
    footers: tuple[Footer | None, ...]

    def schema(self) -> pa.Schema | None:
        return next((footer.schema for footer in self.footers if footer), None)

    def ordered_as(self, paths: Sequence[str]) -> "OpenedTable":
        """The files of `paths` first, in that order, and the others after them."""
        place = {path: index for index, path in enumerate(paths)}
        files = list(zip(self.table.files, self.footers, strict=True))
        files.sort(key=lambda each: place.get(str(each[0].location), len(place)))
        table = replace(self.table, files=tuple(file for file, _ in files))
        return replace(self, table=table, footers=tuple(footer for _, footer in files))

    def row_bytes(self, columns: Sequence[str], num_rows: int) -> int:
        """A row's mean size in the given columns, decoded."""
        names = [self.table.columns[column] for column in columns if self.table.has(column)]
        total = sum(
            footer.size_bytes(names) if footer else file.size_bytes
            for footer, file in zip(self.footers, self.table.files, strict=True)
        )
        return max(1, total // max(1, num_rows))


Mapped = Mapping[str, str | tuple[str, ...]]
"""The job's name of a column -> its name in the files, or the first of several that is there."""


def open_table(name: str, uri: str, mapping: Mapped) -> OpenedTable:
    """List the files, read the footers and find the columns; unmapped ones keep their name.

    Raises UsageError that names the file or the column.
    """
    files = data_files(Location.parse(uri))
    if not files:
        raise UsageError(f"{name}: no Parquet or JSON lines files at {uri}")
    footers = _read_footers(files)
    columns = _find_columns(name, files, footers, mapping)
    _check_same_types(name, files, footers, columns)
    return OpenedTable(Table(name, tuple(files), columns), tuple(footers))


def data_files(location: Location) -> list[DataFile]:
    """Parquet files of a place, or where it has none, JSON lines and tab-separated files."""
    found = [
        DataFile(place, info.size, info.mtime_ns or 0, not _is_text(place.name))
        for place, info in list_files(location)
    ]
    if len(found) == 1 and found[0].location == location:
        return found
    parquet_files = [file for file in found if file.location.name.endswith(".parquet")]
    return parquet_files or [file for file in found if not file.is_parquet]


def _is_text(name: str) -> bool:
    return name.removesuffix(".gz").endswith((".jsonl", ".tsv"))


def _read_footers(files: Sequence[DataFile]) -> list[Footer | None]:
    def read(file: DataFile) -> Footer | None:
        return parquet.read_footer(file.location) if file.is_parquet else None

    try:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(read, files))
    except UnreadableInput as error:
        raise UsageError(str(error)) from error


def _names(file: DataFile, footer: Footer | None) -> set[str]:
    """Column names of one file; a line file is known by its first row."""
    if footer is not None:
        return set(footer.schema.names)
    try:
        return set(next(lines.scan_rows(file.location), (0, {}))[1])
    except UnreadableInput as error:
        raise UsageError(str(error)) from error


def _find_columns(
    name: str,
    files: Sequence[DataFile],
    footers: Sequence[Footer | None],
    mapping: Mapped,
) -> dict[str, str]:
    first = _names(files[0], footers[0])
    present = {}
    for column in TABLE_COLUMNS[name]:
        wanted = mapping.get(column, column)
        names = (wanted,) if isinstance(wanted, str) else wanted
        found = next((each for each in names if each in first), None)
        if found:
            present[column] = found
        elif column in mapping:
            raise UsageError(
                f"{name}: no column {names[0]!r} (for {column}) in {files[0].location}; "
                f"its columns: {', '.join(sorted(first))}"
            )
    for file, footer in zip(files[1:], footers[1:], strict=True):
        missing = sorted(set(present.values()) - _names(file, footer)) if footer else []
        if missing:
            raise UsageError(f"{name}: no column {missing[0]!r} in {file.location}")
    return present


def _check_same_types(
    name: str,
    files: Sequence[DataFile],
    footers: Sequence[Footer | None],
    columns: Mapping[str, str],
) -> None:
    """Ids must have one type over all files, or they could not keep it in the output."""
    for column in ("query_id", "doc_id"):
        types = {
            id_type(footer.schema.field(columns[column]).type)
            for footer in footers
            if footer is not None and column in columns
        }
        if len(types) > 1:
            raise UsageError(
                f"{name}: column {columns[column]!r} has different types in different files: "
                f"{', '.join(sorted(str(kind) for kind in types))}"
            )


def id_type(kind: pa.DataType) -> pa.DataType:
    """The type of an id column as the job keeps it: integers as they are, strings large."""
    if pt.is_dictionary(kind):
        kind = kind.value_type
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return pa.large_string()
    return kind


def require(opened: OpenedTable, columns: Iterable[str]) -> None:
    """Raises UsageError for a column that is missing, saying how to map it."""
    table = opened.table
    for column in columns:
        if not table.has(column):
            schema = opened.schema()
            known = f"; its columns: {', '.join(schema.names)}" if schema else ""
            raise UsageError(
                f"{table.name}: no column {column!r} in {table.files[0].location}{known} "
                f"(name another with --map {table.name}.{column}=NAME)"
            )


def check_types(opened: OpenedTable) -> None:
    """Raises UsageError for a column of a type that no row of it could be read from."""
    for footer in opened.footers:
        if footer is None:
            continue
        for column, source in opened.table.columns.items():
            kind = footer.schema.field(source).type
            _check_type(opened.table.name, column, source, kind)
            if column == "candidates":
                for each in kind.value_type:
                    _check_type(opened.table.name, each.name, f"{source}.{each.name}", each.type)


def _check_type(table: str, column: str, source: str, kind: pa.DataType) -> None:
    expected = _EXPECTED.get(column)
    if expected and not expected[1](kind):
        raise UsageError(f"{table}: column {source!r} must be {expected[0]}, got {kind}")


def _is_id(kind: pa.DataType) -> bool:
    kind = id_type(kind)
    return pt.is_large_string(kind) or pt.is_integer(kind)


def _is_text_type(kind: pa.DataType) -> bool:
    return pt.is_null(kind) or pt.is_large_string(id_type(kind))


def _is_number(kind: pa.DataType) -> bool:
    return pt.is_null(kind) or pt.is_integer(kind) or pt.is_floating(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pt.is_list(kind) or pt.is_large_list(kind)


def _is_media(kind: pa.DataType) -> bool:
    return _is_text_type(kind) or _is_bytes(kind) or pt.is_struct(kind) or _is_list(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind)


def _is_content(kind: pa.DataType) -> bool:
    return _is_text_type(kind) or _is_bytes(kind) or pt.is_struct(kind)


def _is_text_or_list(kind: pa.DataType) -> bool:
    return _is_text_type(kind) or (_is_list(kind) and _is_text_type(kind.value_type))


def _is_candidates(kind: pa.DataType) -> bool:
    if not _is_list(kind) or not pt.is_struct(kind.value_type):
        return False
    names = {field.name for field in kind.value_type}
    return "doc_id" in names and bool(names & set(DOCUMENT_COLUMNS))


_EXPECTED: dict[str, tuple[str, Any]] = {
    "query_id": ("a string or an integer", _is_id),
    "doc_id": ("a string or an integer", _is_id),
    "doc_ids": ("a list of ids", lambda kind: _is_list(kind) and _is_id(kind.value_type)),
    "query": ("a string, an image or a struct of text, image and video", _is_content),
    "doc": ("a string, an image or a struct of text, image and video", _is_content),
    "text": ("a string or a list of strings", _is_text_or_list),
    "title": ("a string", _is_text_type),
    "image": ("bytes, a path, a struct of both, or a list of them", _is_media),
    "video": ("bytes, a path, a struct, or a list of them", _is_media),
    "instruction": ("a string", _is_text_type),
    "rank": ("a number", _is_number),
    "score": ("a number", _is_number),
    "candidates": (
        "a list of structs with doc_id and doc (or text, image, video)",
        _is_candidates,
    ),
    **{name: ("a number", _is_number) for name in OPTION_COLUMNS},
}
