"""One input table: its files, and which of their columns hold what the job needs.

Tables: `input` (candidate sets or pairs), or `queries`, `corpus` and `run`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shardrank.actors.config import QueryOptions
from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs import lines, parquet
from shardrank.jobs.inputs.discovery import (
    DataFile,
    Layouts,
    data_files,
    nothing_found,
    tsv_columns,
)
from shardrank.jobs.inputs.lines import Scan
from shardrank.jobs.inputs.parquet import Footer
from shardrank.jobs.inputs.paths import is_begun, names_near, type_at, value_at
from shardrank.jobs.storage import Location

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

_IN_EVERY_FILE = ("query_id", "doc_id", "doc_ids", "candidates")
"""Of what a table has, each file must; other columns are null where a file lacks them."""
_CONTENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "input": (("query", "query_image", "query_video"),),
    "pairs": (("query", "query_image", "query_video"), ("doc", "text", "image", "video")),
    "queries": (("query", "text", "image", "video"),),
    "corpus": (("doc", "text", "image", "video"),),
    "instructions": (("instruction",),),
}
"""At least one of those of each group that the table has must be in each file."""
_SCANNED = ("query_id", "doc_id", "rank", "score", "doc_ids")


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
        """(position, row under the job's names) of the wanted rows of one file, each once; a row
        has those of the columns that its file, or its line, has.
        """
        file = self.files[file_index]
        file.check_unchanged()
        paths = {column: self.columns[column] for column in columns if column in self.columns}
        names = list(dict.fromkeys(paths.values()))
        if file.is_parquet:
            rows = parquet.fetch_rows(file.location, positions, names)
        else:
            rows = lines.fetch_rows(file.location, positions, names, file.tsv_columns)
        for position, row in rows:
            yield position, self.named(row, paths)

    def named(self, row: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
        """The row's values under the job's names, of the columns that it has."""
        return {
            column: value_at(row, path) for column, path in paths.items() if is_begun(row, path)
        }


@dataclass(frozen=True, slots=True)
class OpenedTable:
    """A table with what only the driver needs: `parts`, each file's footer or, of lines, its scan.

    types: the job's name of a column -> its one type over all files, plain; null where nothing is
    known, as of the contents in lines.
    """

    table: Table
    parts: tuple[Footer | Scan, ...]
    types: dict[str, pa.DataType]

    @property
    def footers(self) -> tuple[Footer | None, ...]:
        return tuple(part if isinstance(part, Footer) else None for part in self.parts)

    def ordered_as(self, paths: Sequence[str]) -> "OpenedTable":
        """The files of `paths` first, in that order, and the others after them."""
        place = {path: index for index, path in enumerate(paths)}
        files = list(zip(self.table.files, self.parts, strict=True))
        files.sort(key=lambda each: place.get(str(each[0].location), len(place)))
        table = replace(self.table, files=tuple(file for file, _ in files))
        return replace(self, table=table, parts=tuple(part for _, part in files))

    @property
    def filled(self) -> "Filled":
        """The files that have rows."""
        return _filled(self.table.files, self.parts)

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)

    def row_bytes(self, columns: Sequence[str]) -> int:
        """A row's mean size in the given columns, decoded."""
        names = [self.table.columns[column] for column in columns if self.table.has(column)]
        total = sum(part.size_bytes(names) for part in self.parts)
        return max(1, total // max(1, self.num_rows))


Filled = Sequence[tuple[DataFile, Footer | Scan]]
Mapped = Mapping[str, str | tuple[str, ...]]
"""The job's name of a column -> its path in the files, which must be there; or several, of which
the first that is there counts, or else the job's name.
"""


def open_table(
    name: str, uri: str, mapping: Mapped, layouts: Layouts = MappingProxyType({})
) -> OpenedTable:
    """List the files, read footers and lines, find the columns and the one type of each; unmapped
    columns keep their name. A file without rows says nothing about columns.

    layouts: names of the columns of a tab-separated file without a header. Raises UsageError that
    names the file or the column.
    """
    location = Location.parse(uri)
    files = data_files(location)
    if not files:
        raise UsageError(f"{name}: {nothing_found(location)}")
    files = [_with_tsv_columns(name, file, mapping, layouts) for file in files]
    parts = _read_parts(files, _scanned_paths(name, mapping))
    filled = _filled(files, parts)
    if not filled:
        raise UsageError(f"{name}: no rows in {location}")
    columns = _find_columns(name, filled, mapping)
    fields = _find_candidate_fields(filled, columns, mapping)
    types = {column: _one_type(name, path, filled) for column, path in columns.items()}
    return OpenedTable(Table(name, tuple(files), columns, fields), tuple(parts), types)


def _filled(files: Sequence[DataFile], parts: Sequence[Footer | Scan]) -> Filled:
    return [(file, part) for file, part in zip(files, parts, strict=True) if part.num_rows]


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


def _read_parts(files: Sequence[DataFile], scanned: Sequence[str]) -> list[Footer | Scan]:
    def read(file: DataFile) -> Footer | Scan:
        if file.is_parquet:
            return parquet.read_footer(file.location)
        return lines.scan(file.location, scanned, file.tsv_columns)

    try:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(read, files))
    except UnreadableInput as error:
        raise UsageError(str(error)) from error


def _scanned_paths(name: str, mapping: Mapped) -> list[str]:
    """Columns that the driver reads of all rows, under each path that they may have."""
    columns = TABLE_COLUMNS[name] if name == "instructions" else _SCANNED
    known = [column for column in columns if column in TABLE_COLUMNS[name]]
    return sorted({path for column in known for path in _names_of(column, mapping)})


def _names_of(column: str, mapping: Mapped) -> tuple[str, ...]:
    wanted = mapping.get(column, column)
    return (wanted,) if isinstance(wanted, str) else (*wanted, column)


def _has(part: Footer | Scan, path: str) -> bool:
    return type_at(part.schema, path) is not None


def _find_columns(name: str, filled: Filled, mapping: Mapped) -> dict[str, str]:
    present = {}
    for column in TABLE_COLUMNS[name]:
        names = _names_of(column, mapping)
        found = next((each for each in names if any(_has(part, each) for _, part in filled)), None)
        if found:
            present[column] = found
            continue
        file, part = filled[0]
        if isinstance(mapping.get(column), str):
            raise UsageError(
                f"{name}: no column {names[0]!r} (for {column}) in {file.location}; "
                f"its columns: {', '.join(names_near(part.schema, names[0]))}"
            )
        _check_folders(name, names, filled)
    for file, part in filled:
        _check_columns(name, file, part, present)
        _check_names(name, file, part, present)
    return present


def _check_folders(name: str, names: Sequence[str], filled: Filled) -> None:
    for file, _ in filled:
        found = [each for each in names if f"/{each}=" in file.location.path]
        if found:
            raise UsageError(
                f"{name}: column {found[0]!r} stands in the name of a folder, {file.location}: "
                "write it into the files"
            )


def _check_columns(
    name: str, file: DataFile, part: Footer | Scan, columns: Mapping[str, str]
) -> None:
    """Raises UsageError for a file that lacks what each must have."""
    is_pairs = name == "input" and "candidates" not in columns
    groups = [(column,) for column in _IN_EVERY_FILE]
    for group in (*groups, *_CONTENTS.get("pairs" if is_pairs else name, ())):
        paths = [columns[column] for column in group if column in columns]
        if paths and not any(_has(part, path) for path in paths):
            raise UsageError(f"{name}: no column {paths[0]!r} in {file.location}")


def _check_names(
    name: str, file: DataFile, part: Footer | Scan, columns: Mapping[str, str]
) -> None:
    """Raises UsageError for a column, or a field in one, that stands twice or that pyarrow reads
    wrong: the offsets of a large list view come too short (26).
    """
    for path in columns.values():
        root = path if path in part.schema.names else path.partition(".")[0]
        kinds = [] if part.schema.names.count(root) > 1 else [*_nested(part.type_of(path))]
        fields = [[field.name for field in kind] for kind in kinds if pt.is_struct(kind)]
        twice = [each for names in fields for each in names if names.count(each) > 1]
        if twice or not kinds:
            shown = (twice or [root])[0]
            raise UsageError(f"{name}: column {shown!r} stands twice in {file.location}")
        if any(pt.is_large_list_view(kind) for kind in kinds):
            raise UsageError(
                f"{name}: column {path!r} in {file.location} is a large_list_view, which is not "
                "read; write it as a list"
            )


def _nested(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The type and those of all its fields, at any depth."""
    yield kind
    for index in range(kind.num_fields):
        yield from _nested(kind.field(index).type)


def _find_candidate_fields(
    filled: Filled, columns: Mapping[str, str], mapping: Mapped
) -> dict[str, str]:
    """The mapped fields of a candidate, which every file must have."""
    fields = {
        column.removeprefix(CANDIDATES): str(path)
        for column, path in mapping.items()
        if column.startswith(CANDIDATES)
    }
    for file, part in filled:
        for field_, path in fields.items():
            source = columns.get("candidates", "candidates")
            kind = plain_type(part.type_of(source))
            if not _is_candidates(kind):
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


def _one_type(name: str, path: str, filled: Filled) -> pa.DataType:
    """The plain type that holds the column's values of all files."""
    files: dict[pa.DataType, DataFile] = {}
    for file, part in filled:
        files.setdefault(plain_type(part.type_of(path)), file)
    unified, first = pa.null(), filled[0][0]
    for kind, file in files.items():
        try:
            merged = _merged(unified, kind)
        except pa.ArrowTypeError as error:
            raise UsageError(
                f"{name}: column {path!r} has different types in different files: {unified} in "
                f"{first.location} and {kind} in {file.location}"
            ) from error
        first, unified = file if pt.is_null(unified) else first, merged
    return unified


def _merged(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Raises ArrowTypeError where no type holds the values of both."""
    schemas = [pa.schema([("column", one)]), pa.schema([("column", other)])]
    merged = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    if pa.uint64() in (one, other) and merged == pa.int64():
        raise pa.ArrowTypeError("the largest of one are not in the other")
    return merged


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The one type of the same values, whatever a file keeps them as; integers as they are."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pt.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pt.is_string(kind) or pt.is_string_view(kind):
        return pa.large_string()
    if pt.is_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind):
        return pa.large_binary()
    if is_list(kind):
        return pa.large_list(plain_type(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([pa.field(each.name, plain_type(each.type)) for each in kind])
    return kind


def is_list(kind: pa.DataType) -> bool:
    known = (pt.is_list, pt.is_large_list, pt.is_list_view, pt.is_fixed_size_list)
    return any(each(kind) for each in known)


def require(opened: OpenedTable, columns: Iterable[str]) -> None:
    """Raises UsageError for a column that is missing, saying how to map it."""
    table = opened.table
    for column in columns:
        if not table.has(column):
            file, part = opened.filled[0]
            raise UsageError(
                f"{table.name}: no column {column!r} in {file.location}; its columns: "
                f"{', '.join(part.schema.names)} "
                f"(name another with --map {table.name}.{column}=NAME)"
            )


def check_types(opened: OpenedTable) -> None:
    """Raises UsageError for a column of a type that no row of it could be read from."""
    for column, kind in opened.types.items():
        path = opened.table.columns[column]
        _check_type(opened, path, column, path, kind)
        if column == "candidates":
            _check_candidates(opened, path, kind.value_type)


def _check_candidates(opened: OpenedTable, source: str, candidate: pa.StructType) -> None:
    paths = {each.name: each.name for each in candidate} | opened.table.candidate_fields
    if "doc_id" not in paths or not set(paths) & set(DOCUMENT_COLUMNS):
        raise UsageError(
            f"{opened.table.name}: column {source!r} must be {_EXPECTED['candidates'][0]}; its "
            f"fields: {', '.join(each.name for each in candidate)} "
            "(name another with --map input.candidates.doc_id=NAME)"
        )
    for column, path in paths.items():
        kind = type_at(candidate, path)
        assert kind is not None
        _check_type(opened, source, column, f"{source}.{path}", kind)


def _check_type(
    opened: OpenedTable, source: str, column: str, shown: str, kind: pa.DataType
) -> None:
    """source: the path of the table's column in which `shown` is."""
    expected = _EXPECTED.get(column)
    if expected is None or any(is_one(kind) for is_one in expected[1]):
        return
    found = [(plain_type(part.type_of(source)), file) for file, part in opened.filled]
    whole = _one_type(opened.table.name, source, opened.filled)
    file = next((file for each, file in found if each == whole), found[0][1])
    raise UsageError(
        f"{opened.table.name}: column {shown!r} must be {expected[0]}, got {kind} in "
        f"{file.location}"
    )


_Kinds = tuple[Callable[[pa.DataType], bool], ...]

_ID: _Kinds = (pt.is_large_string, pt.is_integer)
_TEXT: _Kinds = (pt.is_null, pt.is_large_string)
_NUMBER: _Kinds = (pt.is_null, pt.is_integer, pt.is_floating)
_CONTENT: _Kinds = (*_TEXT, pt.is_large_binary, pt.is_struct)


def _is_candidates(kind: pa.DataType) -> bool:
    return pt.is_large_list(kind) and pt.is_struct(kind.value_type)


def _list_of(kinds: _Kinds) -> Callable[[pa.DataType], bool]:
    return lambda kind: pt.is_large_list(kind) and any(each(kind.value_type) for each in kinds)


_CONTENTS_TEXT = "a string, an image or a struct of text, image and video"
_IMAGES = ("bytes, a path, a struct of both, or a list of them", (*_CONTENT, pt.is_large_list))
_VIDEOS = ("bytes, a path, a struct, or a list of them", (*_CONTENT, pt.is_large_list))
_EXPECTED: dict[str, tuple[str, _Kinds]] = {
    "query_id": ("a string or an integer", _ID),
    "doc_id": ("a string or an integer", _ID),
    "doc_ids": ("a list of ids", (_list_of(_ID),)),
    "query": (_CONTENTS_TEXT, _CONTENT),
    "doc": (_CONTENTS_TEXT, _CONTENT),
    "text": ("a string or a list of strings", (*_TEXT, _list_of(_TEXT))),
    "title": ("a string", _TEXT),
    "image": _IMAGES,
    "video": _VIDEOS,
    "instruction": ("a string", _TEXT),
    "rank": ("a number", _NUMBER),
    "score": ("a number", _NUMBER),
    "candidates": (
        "a list of structs with doc_id and doc (or text, image, video)",
        (_is_candidates,),
    ),
    "query_image": _IMAGES,
    "query_video": _VIDEOS,
    **{name: ("a number", _NUMBER) for name in OPTION_COLUMNS},
}
