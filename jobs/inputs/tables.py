"""One input table: its files, and which of their columns hold what the job needs.

Tables: `input` (candidate sets or pairs), or `queries`, `corpus` and `run`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from pyarrow import fs

from shardrank.actors.config import QueryOptions
from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs import lines, parquet
from shardrank.jobs.inputs.parquet import Footer
from shardrank.jobs.inputs.paths import names_near, type_at, value_at
from shardrank.jobs.inputs.tsv import Layouts, tsv_columns
from shardrank.jobs.storage import Location, list_files, open_input

OPTION_COLUMNS = tuple(each.name for each in fields(QueryOptions))
QUERY_COLUMNS = ("query", "text", "image", "video", "instruction", *OPTION_COLUMNS)
DOCUMENT_COLUMNS = ("doc", "title", "text", "image", "video")
CANDIDATES = "candidates."
INPUT_QUERY_COLUMNS = ("query", "query_image", "query_video", "instruction", *OPTION_COLUMNS)
"""What an `input` table has of a query; its `image` and `video` are a document's."""
CANDIDATE_COLUMNS = ("doc_id", *DOCUMENT_COLUMNS, "rank", "score")

TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "input": ("query_id", "doc_id", "candidates", "rank", "score")
    + (*INPUT_QUERY_COLUMNS, *DOCUMENT_COLUMNS),
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
    tsv_columns: tuple[str, ...] = ()

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
    """`columns`: the job's name of a column -> its path in the files, for those that are there;
    candidate_fields: the same of a candidate's fields, for those of another name.
    """

    name: str
    files: tuple[DataFile, ...]
    columns: dict[str, str]
    candidate_fields: dict[str, str] = field(default_factory=dict)

    def has(self, column: str) -> bool:
        return column in self.columns

    def candidate_path(self, field: str) -> str:
        return self.candidate_fields.get(field, field)

    def fetch(
        self, file_index: int, positions: np.ndarray, columns: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(position, row under the job's names) of the wanted rows of one file, each once."""
        file = self.files[file_index]
        file.check_unchanged()
        paths = {column: self.columns[column] for column in columns if column in self.columns}
        names = list(dict.fromkeys(paths.values()))
        if file.is_parquet:
            rows = parquet.fetch_rows(file.location, positions, names)
        else:
            rows = lines.fetch_rows(file.location, positions, names, file.tsv_columns)
        for position, row in rows:
            yield position, {column: value_at(row, path) for column, path in paths.items()}


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
"""The job's name of a column -> its path in the files, which must be there; or several, of which
the first that is there counts, or else the job's name.
"""


def open_table(
    name: str, uri: str, mapping: Mapped, layouts: Layouts = MappingProxyType({})
) -> OpenedTable:
    """List the files, read the footers and find the columns; unmapped ones keep their name.

    layouts: names of the columns of a tab-separated file without a header. Raises UsageError that
    names the file or the column.
    """
    files = data_files(Location.parse(uri))
    if not files:
        raise UsageError(f"{name}: no Parquet or JSON lines files at {uri}")
    footers = _read_footers(files)
    files = [_with_tsv_columns(name, file, mapping, layouts) for file in files]
    columns = _find_columns(name, files, footers, mapping)
    _check_same_types(name, files, footers, columns)
    fields = _find_candidate_fields(files, footers, columns, mapping)
    return OpenedTable(Table(name, tuple(files), columns, fields), tuple(footers))


def _with_tsv_columns(name: str, file: DataFile, mapping: Mapped, layouts: Layouts) -> DataFile:
    try:
        if file.is_parquet or not lines.is_tsv(file.location):
            return file
        ids = [column for column in ("query_id", "doc_id") if column in TABLE_COLUMNS[name]]
        known = [each for column in ids for each in _names_of(column, mapping)]
        columns = tsv_columns(name, file.location, list(dict.fromkeys(known)), layouts)
        return replace(file, tsv_columns=columns)
    except UnreadableInput as error:
        raise UsageError(str(error)) from error


def data_files(location: Location) -> list[DataFile]:
    """Parquet files of a place, or where it has none, JSON lines and tab-separated files."""
    found = [
        DataFile(place, info.size, info.mtime_ns or 0, not _is_text(place.name))
        for place, info in list_files(location)
    ]
    if len(found) == 1 and found[0].location == location:
        return [replace(found[0], is_parquet=_is_parquet(location))]
    parquet_files = [file for file in found if file.location.name.endswith(".parquet")]
    return parquet_files or [file for file in found if not file.is_parquet]


def _is_parquet(location: Location) -> bool:
    """Whether a file that was named itself is Parquet: by its ending, or else its first bytes."""
    name = location.name.lower()
    if name.endswith((".parquet", ".jsonl", ".tsv", ".gz")):
        return name.endswith(".parquet")
    with open_input(location) as stream:
        return stream.read(4).startswith(b"PAR")


def _is_text(name: str) -> bool:
    return name.endswith((".jsonl", ".tsv", ".gz"))


def _read_footers(files: Sequence[DataFile]) -> list[Footer | None]:
    def read(file: DataFile) -> Footer | None:
        return parquet.read_footer(file.location) if file.is_parquet else None

    try:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(read, files))
    except UnreadableInput as error:
        raise UsageError(str(error)) from error


def _fields(file: DataFile, footer: Footer | None) -> pa.Schema:
    """A file's columns; those of a line file are its first row's."""
    if footer is not None:
        return footer.schema
    try:
        row = next(lines.scan_rows(file.location, file.tsv_columns), (0, {}))[1]
    except UnreadableInput as error:
        raise UsageError(str(error)) from error
    return pa.schema([(name, _kind_of(value)) for name, value in row.items()])


def _kind_of(value: Any) -> pa.DataType:
    if isinstance(value, dict):
        return pa.struct([(name, _kind_of(each)) for name, each in value.items()])
    return pa.null()


def _names_of(column: str, mapping: Mapped) -> tuple[str, ...]:
    wanted = mapping.get(column, column)
    return (wanted,) if isinstance(wanted, str) else (*wanted, column)


def _find_columns(
    name: str,
    files: Sequence[DataFile],
    footers: Sequence[Footer | None],
    mapping: Mapped,
) -> dict[str, str]:
    first = _fields(files[0], footers[0])
    present = {}
    for column in TABLE_COLUMNS[name]:
        names = _names_of(column, mapping)
        found = next((each for each in names if type_at(first, each) is not None), None)
        if found:
            present[column] = found
        elif isinstance(mapping.get(column), str):
            raise UsageError(
                f"{name}: no column {names[0]!r} (for {column}) in {files[0].location}; "
                f"its columns: {', '.join(names_near(first, names[0]))}"
            )
    for file, footer in zip(files[1:], footers[1:], strict=True):
        fields = _fields(file, footer) if footer else None
        missing = [
            each for each in sorted(present.values()) if fields and not type_at(fields, each)
        ]
        if missing:
            raise UsageError(f"{name}: no column {missing[0]!r} in {file.location}")
    return present


def _find_candidate_fields(
    files: Sequence[DataFile],
    footers: Sequence[Footer | None],
    columns: Mapping[str, str],
    mapping: Mapped,
) -> dict[str, str]:
    """The mapped fields of a candidate, which every file must have."""
    fields = {
        column.removeprefix(CANDIDATES): str(path)
        for column, path in mapping.items()
        if column.startswith(CANDIDATES)
    }
    for file, footer in zip(files, footers, strict=True):
        for field_, path in fields.items():
            source = columns.get("candidates", "candidates")
            kind = type_at(footer.schema, source) if footer else None
            if kind is None or not _is_list(kind) or not pt.is_struct(kind.value_type):
                raise UsageError(
                    f"input: --map input.candidates.{field_}={path} needs a column {source!r} that "
                    f"is a list of structs; {file.location} has none"
                )
            if type_at(kind.value_type, path) is None:
                raise UsageError(
                    f"input: no field {path!r} (for candidates.{field_}) in {source!r} of "
                    f"{file.location}; its fields: {', '.join(names_near(kind.value_type, path))}"
                )
    return fields


def _check_same_types(
    name: str,
    files: Sequence[DataFile],
    footers: Sequence[Footer | None],
    columns: Mapping[str, str],
) -> None:
    """Ids must have one type over all files, or they could not keep it in the output."""
    for column in ("query_id", "doc_id"):
        types = {
            id_type(footer.type_of(columns[column]))
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
            kind = footer.type_of(source)
            _check_type(opened.table.name, column, source, kind)
            if column == "candidates":
                _check_candidates(opened.table, source, kind.value_type)


def _check_candidates(table: Table, source: str, candidate: pa.StructType) -> None:
    paths = {each.name: each.name for each in candidate} | table.candidate_fields
    if "doc_id" not in paths or not set(paths) & set(DOCUMENT_COLUMNS):
        raise UsageError(
            f"{table.name}: column {source!r} must be {_EXPECTED['candidates'][0]}; its fields: "
            f"{', '.join(each.name for each in candidate)} "
            "(name another with --map input.candidates.doc_id=NAME)"
        )
    for column, path in paths.items():
        kind = type_at(candidate, path)
        assert kind is not None
        _check_type(table.name, column, f"{source}.{path}", kind)


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
    return _is_list(kind) and pt.is_struct(kind.value_type)


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
    "query_image": ("bytes, a path, a struct of both, or a list of them", _is_media),
    "query_video": ("bytes, a path, a struct, or a list of them", _is_media),
    **{name: ("a number", _is_number) for name in OPTION_COLUMNS},
}
