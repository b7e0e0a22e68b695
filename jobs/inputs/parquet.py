"""Parquet files by footer, by row position and by row range; knows nothing about queries."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardrank.actors.lru import LRU
from shardrank.jobs.errors import UnreadableInput
from shardrank.jobs.inputs.paths import type_at
from shardrank.jobs.storage import Location, open_input

_BATCH_BYTES = 16 << 20
_CACHED_GROUP_BYTES = 64 << 20
_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RowGroup:
    """`columns`: leaf path -> (number of values, uncompressed bytes)."""

    num_rows: int
    columns: dict[str, tuple[int, int]]

    def size_bytes(self, names: Sequence[str]) -> int:
        return sum(
            size
            for path, (_, size) in self.columns.items()
            if any(path == name or path.startswith(f"{name}.") for name in names)
        )


@dataclass(frozen=True, slots=True)
class Footer:
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for group in self.row_groups)

    def type_of(self, path: str) -> pa.DataType:
        kind = type_at(self.schema, path)
        assert kind is not None, path
        return kind

    def size_bytes(self, names: Sequence[str]) -> int:
        return sum(group.size_bytes(names) for group in self.row_groups)


@contextmanager
def open_parquet(location: Location) -> Iterator[pq.ParquetFile]:
    """Raises UnreadableInput that names the file, also for what goes wrong while it is read."""
    try:
        with open_input(location) as stream:
            yield pq.ParquetFile(stream, pre_buffer=False)
    except (OSError, UnicodeError, pa.ArrowException) as error:  # UnicodeError: names not in UTF-8
        raise UnreadableInput(f"{location} cannot be read as Parquet: {error}") from error


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
    """Rows start..stop in batches of about 16 MiB; columns may be leaf paths."""
    with open_parquet(location) as file:
        first_row = 0
        for group in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if first_row < stop and first_row + num_rows > start:
                for position, batch in _batches(file, group, columns):
                    low = max(start - first_row - position, 0)
                    high = min(stop - first_row - position, batch.num_rows)
                    if low < high:
                        yield batch.slice(low, high - low)
            first_row += num_rows


def _batches(
    file: pq.ParquetFile, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    """(position in the row group, rows) of one row group, without holding all of it."""
    metadata = file.metadata.row_group(group)
    row_bytes = max(1, _group_bytes(metadata, columns) // max(1, metadata.num_rows))
    batch_size = max(1, min(65_536, _BATCH_BYTES // row_bytes))
    position = 0
    for batch in file.iter_batches(batch_size, row_groups=[group], columns=list(columns)):
        yield position, pa.Table.from_batches([batch])
        position += batch.num_rows


def _group_bytes(metadata: Any, columns: Sequence[str]) -> int:
    return _row_group(metadata).size_bytes([column.split(".")[0] for column in columns])


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """`to_pylist`, but what is no UTF-8 in a text becomes lone surrogates, which its row's reader
    refuses; Arrow checks texts neither when it writes them nor when it reads them.
    """
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        fields = list(table.schema)
        as_bytes = pa.schema([field.with_type(_as_bytes(field.type)) for field in fields])
        rows = table.cast(as_bytes).to_pylist()
        return [{each.name: _as_text(row[each.name], each.type) for each in fields} for row in rows]


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    return kind


def _as_text(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, bytes) and _as_bytes(kind) != kind:
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list) and pa.types.is_list(kind):
        return [_as_text(each, kind.value_type) for each in value]
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {field.name: _as_text(value[field.name], field.type) for field in kind}
    return value


def fetch_rows(
    location: Location, positions: np.ndarray, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(position, row) of the wanted rows; each row group is read once and small ones are kept."""
    wanted = np.unique(positions)
    with open_parquet(location) as file:
        first_row = 0
        for group in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(wanted, [first_row, first_row + num_rows])
            if low < high:
                yield from _fetch_group(file, location, group, columns, first_row, wanted[low:high])
            first_row += num_rows


def _fetch_group(
    file: pq.ParquetFile,
    location: Location,
    group: int,
    columns: Sequence[str],
    first_row: int,
    wanted: np.ndarray,
) -> Iterator[tuple[int, dict[str, Any]]]:
    for position, batch in _cached_batches(file, location, group, columns):
        start = first_row + position
        if start > wanted[-1]:
            return
        low, high = np.searchsorted(wanted, [start, start + batch.num_rows])
        rows = to_rows(batch.take(pa.array(wanted[low:high] - start)))
        yield from zip(wanted[low:high].tolist(), rows, strict=True)


def _cached_batches(
    file: pq.ParquetFile, location: Location, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    if _group_bytes(file.metadata.row_group(group), columns) > _CACHED_GROUP_BYTES:
        yield from _batches(file, group, columns)
        return
    info = location.info()
    key = (location, info.size, info.mtime_ns, group, tuple(columns))
    cache = _row_group_cache()
    table = cache.get(key)
    if table is None:
        table = file.read_row_group(group, columns=list(columns))
        cache.put(key, table)
    yield 0, table


@lru_cache(maxsize=1)
def _row_group_cache() -> LRU[Any, pa.Table]:
    """Decoded row groups of this worker process."""
    return LRU(_CACHE_BYTES)


def to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def from_ipc(content: bytes | pa.Buffer) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
