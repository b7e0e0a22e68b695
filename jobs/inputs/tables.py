"""One input table: its files, and which of their columns hold what the job needs.

Tables: `input` (candidate sets or pairs), or `queries`, `corpus` and `run`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs import lines, parquet, pdfs
from shardrank.jobs.inputs.columns import (
    CANDIDATES,
    CONTENTS,
    DOCUMENT_COLUMNS,
    EXPECTED,
    IN_EVERY_FILE,
    PDF_COLUMNS,
    SCANNED,
    TABLE_COLUMNS,
)
from shardrank.jobs.inputs.discovery import DataFile, data_files, nothing_found
from shardrank.jobs.inputs.lines import Layouts, Scan, tsv_columns
from shardrank.jobs.inputs.parquet import Footer
from shardrank.jobs.inputs.paths import (
    is_begun,
    names_near,
    nested,
    plain_type,
    type_at,
    value_at,
)
from shardrank.jobs.storage import Location


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
        elif file.is_pdf:
            rows = pdfs.fetch_rows(file, positions)
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
    name: str,
    uri: str,
    mapping: Mapped,
    layouts: Layouts = MappingProxyType({}),
    max_pdf_pages: int = pdfs.MAX_PAGES,
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
    try:
        files = [_with_tsv_columns(name, file, mapping, layouts) for file in files]
        parts = _read_parts(name, files, _scanned_paths(name, mapping), max_pdf_pages)
    except UnreadableInput as error:
        raise UsageError(str(error)) from error
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
    if file.is_parquet or file.is_pdf or not lines.is_tsv(file.location):
        return file
    ids = [column for column in ("query_id", "doc_id") if column in TABLE_COLUMNS[name]]
    known = dict.fromkeys(each for column in ids for each in _names_of(column, mapping))
    return replace(file, tsv_columns=tsv_columns(name, file.location, [*known], layouts))


def _read_parts(
    name: str, files: Sequence[DataFile], scanned: Sequence[str], max_pdf_pages: int
) -> list[Footer | Scan]:
    if files[0].is_pdf and name != "corpus":
        raise UsageError(f"{name}: {files[0].location} is a PDF: PDF files are read as a corpus")
    if files[0].is_pdf:
        return list(pdfs.scan_files(files, max_pdf_pages))

    def read(file: DataFile) -> Footer | Scan:
        if file.is_parquet:
            return parquet.read_footer(file.location)
        return lines.scan(file.location, scanned, file.tsv_columns)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, files))


def _scanned_paths(name: str, mapping: Mapped) -> list[str]:
    """Columns that the driver reads of all rows, under each path that they may have."""
    columns = TABLE_COLUMNS[name] if name == "instructions" else SCANNED
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
        file, part = filled[0]
        if found:
            present[column] = found
        elif isinstance(mapping.get(column), str):
            raise UsageError(
                f"{name}: no column {names[0]!r} (for {column}) in {file.location}; "
                f"its columns: {', '.join(names_near(part.schema, names[0]))}"
            )
        else:
            _check_folders(name, names, filled)
    if not _reads_pdf(present, mapping):
        present = {column: path for column, path in present.items() if column not in PDF_COLUMNS}
    for file, part in filled:
        _check_columns(name, file, part, present)
        _check_names(name, file, part, present)
    return present


def _reads_pdf(columns: Mapping[str, str], mapping: Mapped) -> bool:
    """Whether a column `pdf` is a document: the only content that there is, or mapped. Beside
    others it commonly names where they come from.
    """
    return "pdf" in columns and (
        "pdf" in mapping or not {"doc", "text", "image", "video"} & {*columns}
    )


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
    groups = [(column,) for column in IN_EVERY_FILE]
    for group in (*groups, *CONTENTS.get("pairs" if is_pairs else name, ())):
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
        kinds = [] if part.schema.names.count(root) > 1 else [*nested(part.type_of(path))]
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
            if not _may_be("candidates", kind):
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
    if "doc_id" not in paths or not set(paths) & set(DOCUMENT_COLUMNS) - {"page", "pages"}:
        raise UsageError(
            f"{opened.table.name}: column {source!r} must be {EXPECTED['candidates'][0]}; its "
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
    if _may_be(column, kind):
        return
    found = [(plain_type(part.type_of(source)), file) for file, part in opened.filled]
    whole = _one_type(opened.table.name, source, opened.filled)
    file = next((file for each, file in found if each == whole), found[0][1])
    raise UsageError(
        f"{opened.table.name}: column {shown!r} must be {EXPECTED[column][0]}, got {kind} in "
        f"{file.location}"
    )


def _may_be(column: str, kind: pa.DataType) -> bool:
    """Whether the job reads a column, of this name, of this plain type; of other names any is."""
    _, kinds, item_kinds = EXPECTED.get(column, ("", (), ()))
    return (
        column not in EXPECTED
        or any(is_one(kind) for is_one in kinds)
        or (pt.is_large_list(kind) and any(is_one(kind.value_type) for is_one in item_kinds))
    )
