"""Parquet files by footer, by row range and by rows' positions; knows nothing about queries."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from shardrank.actors.lru import LRU
from shardrank.jobs.errors import UnreadableInput
from shardrank.jobs.inputs.paths import type_at
from shardrank.jobs.storage import Location, open_input

_BATCH_BYTES = 16 << 20
SMALL_GROUP_BYTES = 64 << 20
_EXPANDED_BYTES = 128 << 20
_TAIL_BYTES = 64 << 10
_SIGNATURE_BYTES = 28
"""Behind a plain footer of a file with encrypted columns: Parquet's Encryption.md, 5.2."""
_DICTIONARY_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
"""Others, such as DELTA_BYTE_ARRAY, pyarrow does not read as dictionaries."""

_kept: LRU[Any, pa.Table] = LRU(256 << 20)
"""Decoded row groups of this worker process."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """`columns`: leaf path -> (number of values, uncompressed bytes)."""

    num_rows: int
    columns: dict[str, tuple[int, int]]

    def size_bytes(self, names: Sequence[str]) -> int:
        return sum(n for path, (_, n) in self.columns.items() if _is_within(path, names))


def _is_within(path: str, names: Sequence[str]) -> bool:
    """Whether a leaf path is of one of these columns, or is one of these paths."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


@dataclass(frozen=True, slots=True)
class Footer:
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for group in self.row_groups)

    def type_of(self, path: str) -> pa.DataType:
        """Null of a column that the file does not have."""
        return type_at(self.schema, path) or pa.null()

    def size_bytes(self, names: Sequence[str]) -> int:
        return sum(group.size_bytes(names) for group in self.row_groups)


@contextmanager
def open_parquet(location: Location, dictionaries: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Raises UnreadableInput that names the file, also for what goes wrong while it is read.

    dictionaries: the columns of which texts and bytes that the file keeps as a dictionary are read
    as one, nested ones too, so that a value which stands in every row is in memory once.
    """
    try:
        with open_input(location) as stream:
            metadata = _metadata(stream)
            paths = _dictionary_paths(metadata, dictionaries) if dictionaries else None
            yield pq.ParquetFile(stream, metadata=metadata, read_dictionary=paths, pre_buffer=False)
    except (OSError, UnicodeError, pa.ArrowException) as error:  # UnicodeError: names not in UTF-8
        raise UnreadableInput(f"{location} cannot be read as Parquet: {error}") from error


def _metadata(stream: Any) -> pq.FileMetaData:
    """The footer. Raises OSError for an encrypted file, of which pyarrow ends the process when the
    metadata of an encrypted column is asked for.
    """
    tail = _last_bytes(stream, _TAIL_BYTES)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail.endswith(b"PARE"):
        raise OSError("it is encrypted; decrypt it first")
    if length + 8 > len(tail):
        tail = _last_bytes(stream, length + 8)
    metadata = pq.read_metadata(pa.BufferReader(tail))
    if length - metadata.serialized_size == _SIGNATURE_BYTES:
        raise OSError("it has encrypted columns; decrypt it first")
    return metadata


def _last_bytes(stream: Any, count: int) -> bytes:
    stream.seek(max(0, stream.size() - count))
    return stream.read()


def _dictionary_paths(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[str]:
    """A dictionary is in memory as long as its row group is read, so large ones are left out."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    leaves = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    return [
        leaf.path
        for index, leaf in enumerate(leaves)
        if _is_within(leaf.path, columns)
        and leaf.physical_type == "BYTE_ARRAY"
        and leaf.logical_type.type != "DECIMAL"
        and all(_is_dictionary(group.column(index)) for group in groups)
    ]


def _is_dictionary(chunk: Any) -> bool:
    return (
        chunk.has_dictionary_page
        and set(chunk.encodings) <= _DICTIONARY_ENCODINGS
        and chunk.total_uncompressed_size <= SMALL_GROUP_BYTES
    )


def read_footer(location: Location) -> Footer:
    with open_parquet(location) as file:
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        return Footer(file.schema_arrow, tuple(_row_group(group) for group in groups))


def _row_group(group: Any) -> RowGroup:
    columns = (group.column(i) for i in range(group.num_columns))
    return RowGroup(
        group.num_rows,
        {c.path_in_schema: (c.num_values, c.total_uncompressed_size) for c in columns},
    )


def leaf_path(footer: Footer, column: str, field: str) -> str | None:
    """The path of `field` inside a list of structs, however the writer named the list's items."""
    wanted = re.compile(rf"{re.escape(column)}(\.[^.]+){{1,2}}\.{re.escape(field)}")
    paths = footer.row_groups[0].columns if footer.row_groups else ()
    return next((path for path in paths if wanted.fullmatch(path)), None)


def read_range(
    location: Location, start: int, stop: int, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Rows start..stop in batches, small ones or of about 16 MiB, with those of the columns that
    the file has; columns may be leaf paths.
    """
    with open_parquet(location, columns) as file:
        columns = present(file, columns)
        for group, first, last in row_groups(file):
            if first < stop and last > start:
                for position, batch in batches(file, group, columns):
                    low = max(start - first - position, 0)
                    high = min(stop - first - position, batch.num_rows)
                    if low < high:
                        yield batch.slice(low, high - low)


def row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """(number, first row, the row after its last) of each row group."""
    last = 0
    for group in range(file.metadata.num_row_groups):
        first, last = last, last + file.metadata.row_group(group).num_rows
        yield group, first, last


def present(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """Those of the columns, which may be paths, that the file has."""
    leaves = [file.metadata.schema.column(index).path for index in range(file.metadata.num_columns)]
    return [each for each in columns if any(_is_within(leaf, [each]) for leaf in leaves)]


def batches(
    file: pq.ParquetFile, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    """(position in the row group, rows) of one row group, without holding all of a large one."""
    metadata = file.metadata.row_group(group)
    if is_small(metadata, columns):
        yield 0, file.read_row_group(group, columns=list(columns))
        return
    row_bytes = max(1, _row_group(metadata).size_bytes(columns) // max(1, metadata.num_rows))
    most_rows = _EXPANDED_BYTES // max(1, _expanding_bytes(metadata, columns))
    batch_size = max(1, min(65_536, _BATCH_BYTES // row_bytes, most_rows))
    position = 0
    for batch in file.iter_batches(batch_size, row_groups=[group], columns=list(columns)):
        yield position, pa.Table.from_batches([batch])
        position += batch.num_rows


def is_small(metadata: Any, columns: Sequence[str]) -> bool:
    """Whether the columns of a row group are small in memory too."""
    size_bytes = _row_group(metadata).size_bytes(columns)
    return size_bytes <= SMALL_GROUP_BYTES and not _expanding_bytes(metadata, columns)


def _expanding_bytes(metadata: Any, columns: Sequence[str]) -> int:
    """What one value may have at most of a column that keeps only how a value differs from the one
    before it: nothing says how large they are together.
    """
    chunks = (metadata.column(index) for index in range(metadata.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if "DELTA_BYTE_ARRAY" in chunk.encodings and _is_within(chunk.path_in_schema, columns)
    )


def fetch_rows(
    location: Location, positions: np.ndarray, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(position, row) of the wanted rows, with those of the columns that the file has; each row
    group is read once and small ones are kept.
    """
    wanted = np.unique(positions)
    with open_parquet(location, columns) as file:
        columns = present(file, columns)
        if not columns:
            yield from ((position, {}) for position in wanted.tolist())
            return
        for group, first, last in row_groups(file):
            own = wanted[slice(*np.searchsorted(wanted, [first, last]))] - first
            if len(own):
                yield from (
                    (first + position, row)
                    for position, row in _fetch_group(file, location, group, columns, own)
                )


def _fetch_group(
    file: pq.ParquetFile, location: Location, group: int, columns: Sequence[str], wanted: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    for start, batch in _kept_batches(file, location, group, columns):
        if start > wanted[-1]:
            return
        own = wanted[slice(*np.searchsorted(wanted, [start, start + batch.num_rows]))]
        rows = to_rows(batch.take(pa.array(own - start)))
        yield from zip(own.tolist(), rows, strict=True)


def _kept_batches(
    file: pq.ParquetFile, location: Location, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    if not is_small(file.metadata.row_group(group), columns):
        yield from batches(file, group, columns)
        return
    info = location.info()
    key = (location, info.size, info.mtime_ns, group, tuple(columns))
    table = _kept.get(key)
    if table is None:
        ((_, table),) = batches(file, group, columns)
        _kept.put(key, table)
    yield 0, table


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """`to_pylist`, but a dictionary's value is one object in all rows, and what is no UTF-8 in a
    text becomes lone surrogates, which its row's reader refuses: Arrow checks texts neither when it
    writes them nor when it reads them.
    """
    columns = [[v for chunk in each.chunks for v in _values(chunk)] for each in table.columns]
    names = table.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(array: pa.Array) -> list[Any]:
    kind = array.type
    if pt.is_dictionary(kind):
        used = array.indices.drop_null().unique()
        shared = dict(zip(used.to_pylist(), _values(array.dictionary.take(used)), strict=True))
        return [shared.get(index) for index in array.indices.to_pylist()]
    if pt.is_struct(kind):
        columns = [_values(column) for column in array.flatten()]
        names = [field.name for field in kind]
        rows = zip(*columns, strict=True) if columns else [()] * len(array)
        return [
            dict(zip(names, row, strict=True)) if is_valid else None
            for row, is_valid in zip(rows, array.is_valid().to_pylist(), strict=True)
        ]
    if pt.is_list(kind) or pt.is_large_list(kind):
        values = _values(array.flatten())
        lengths = pc.list_value_length(array).to_pylist()
        ends = accumulate(length or 0 for length in lengths)
        return [
            None if length is None else values[end - length : end]
            for length, end in zip(lengths, ends, strict=True)
        ]
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        texts = array.cast(pa.large_binary()).to_pylist()
        return [text and text.decode("utf-8", "surrogateescape") for text in texts]


def to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def from_ipc(content: bytes | pa.Buffer) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
