"""JSON lines and tab-separated files, plain or compressed: a row's position is its byte offset in
the plain content. Knows nothing about which columns mean what.

Where a function is given a tab-separated file's column names, none are for JSON lines; a first line
that has just these is their header.
"""

import io
import json
import math
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from shardrank.actors.lru import LRU
from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs.paths import is_begun, type_at, value_at
from shardrank.jobs.storage import COMPRESSIONS, Location, compression, open_input, plain_name

UNPACKED_BYTES = 32 << 30
"""A compressed file's content at most, and what a worker process keeps unpacked on its disk."""
LINE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file finds. schema: the names in any of its rows, of structs within
    structs too, all else is null there. columns: `position`, and by their paths those that were
    asked for and are there.
    """

    schema: pa.Schema
    columns: pa.Table
    total_bytes: int

    @property
    def num_rows(self) -> int:
        return self.columns.num_rows

    def size_bytes(self, names: Sequence[str]) -> int:
        """What the columns have at most: whole lines."""
        return self.total_bytes

    def type_of(self, path: str) -> pa.DataType:
        """Null of a column whose values were not asked for."""
        known = self.columns.schema
        return known.field(path).type if path in known.names else pa.null()


def is_compressed(location: Location) -> bool:
    return compression(location.name) is not None


@contextmanager
def open_lines(location: Location) -> Iterator[BinaryIO]:
    """Raises UnreadableInput that names the file, also for what goes wrong while it is read."""
    try:
        with open_input(location) as stream:
            ending = compression(location.name)
            plain = pa.CompressedInputStream(stream, COMPRESSIONS[ending]) if ending else stream
            yield cast(BinaryIO, io.BufferedReader(plain, 1 << 20))
    except OSError as error:
        raise UnreadableInput(f"{location} cannot be read: {error}") from error


def _numbered_lines(location: Location) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, line) of every line that is not empty."""
    offset, limit = 0, UNPACKED_BYTES if is_compressed(location) else math.inf
    with open_lines(location) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES), b""), start=1):
            if len(line) == LINE_BYTES:
                raise UnreadableInput(
                    f"{location}, line {number}: longer than {LINE_BYTES:,} bytes"
                )
            if line.strip():
                yield number, offset, line
            offset += len(line)
            if offset > limit:
                raise _too_large(location)


def _too_large(location: Location) -> UnreadableInput:
    return UnreadableInput(
        f"{location} unpacks to more than {UNPACKED_BYTES:,} bytes: split it, unpack it, or write "
        "it as Parquet"
    )


def text_lines(location: Location) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of every line that is not empty."""
    for number, _, line in _numbered_lines(location):
        yield number, _decode(location, "line", number, line)


BLANKS = " \t\n\r\v\f"
"""ASCII's white space, which alone separates, as in TREC's own programs: an id may have a no-break
space.
"""


def by_blanks(line: str) -> list[str]:
    return line.split() if line.isascii() else [part.decode() for part in line.encode().split()]


def by_tabs(line: str) -> list[str]:
    return [field.strip(BLANKS) for field in line.split("\t")]


def is_tsv(location: Location) -> bool:
    """Whether these are tab-separated lines: by the name's ending, or else by the first line."""
    name = plain_name(location.name)
    if name.endswith((".jsonl", ".ndjson", ".tsv")):
        return name.endswith(".tsv")
    return not next(text_lines(location), (0, "{"))[1].startswith("{")


Layouts = Mapping[int, tuple[str, ...]]
"""Number of columns -> their names in a file without a header."""


def tsv_columns(
    name: str, file: Location, known: Sequence[str], layouts: Layouts
) -> tuple[str, ...]:
    """The names of a file's columns; none for a file without a line.

    known: names of the id columns, of which a header has at least one. Raises UsageError for a
    number of columns that says nothing.
    """
    number, first = next(text_lines(file), (0, ""))
    fields = tuple(first.split("\t"))
    if not number:
        return ()
    if any(field in known for field in fields):
        twice = [field for field in fields if fields.count(field) > 1]
        if twice:
            raise UsageError(f"{name}: column {twice[0]!r} stands twice in {file}")
        return fields
    if len(fields) in layouts:
        return layouts[len(fields)]
    read = "; ".join(f"{num} ({', '.join(names)})" for num, names in sorted(layouts.items()))
    raise UsageError(
        f"{name}: {file}, line {number} has {len(fields)} tab-separated columns and is no header "
        f"with one of {', '.join(known)}; without a header are read: "
        f"{read or 'none here, see --preset'}"
    )


def scan_rows(
    location: Location, tsv_columns: Sequence[str] = ()
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(byte offset, byte offset of the next line, row) of every line that is not empty."""
    for _, offset, line in _numbered_lines(location):
        row = _parse(location, offset, line, tsv_columns)
        if offset or not tsv_columns or [*row.values()] != [*tsv_columns]:
            yield offset, offset + len(line), row


def scan(location: Location, wanted: Sequence[str], tsv_columns: Sequence[str] = ()) -> Scan:
    """wanted: paths. Raises UsageError for a column whose values have no one type."""
    names: dict[str, Any] = {}
    positions: list[int] = []
    values: dict[str, list[Any]] = {path: [] for path in wanted}
    total_bytes = 0
    for offset, end, row in scan_rows(location, tsv_columns):
        _add_names(names, row)
        positions.append(offset)
        total_bytes = end
        for path, column in values.items():
            column.append(value_at(row, path))
    schema = pa.schema([(name, _kind(inner)) for name, inner in names.items()])
    columns = {
        path: _column(location, path, column)
        for path, column in values.items()
        if type_at(schema, path) is not None
    }
    positions_ = pa.array(positions, pa.int64())
    return Scan(schema, pa.table({**columns, "position": positions_}), total_bytes)


def _add_names(names: dict[str, Any], row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        inner = names.setdefault(name, {})
        if isinstance(value, dict):
            _add_names(inner, value)


def _kind(names: Mapping[str, Any]) -> pa.DataType:
    fields = [(name, _kind(inner)) for name, inner in names.items()]
    return pa.struct(fields) if fields else pa.null()


def _column(location: Location, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError, OverflowError) as error:
        raise UsageError(f"{location}: {name!r} has values of different types: {error}") from error


def fetch_rows(
    location: Location,
    positions: np.ndarray,
    columns: Sequence[str],
    tsv_columns: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte offset, row) of the wanted rows, each with those of the paths that it has."""
    opened = _open_unpacked(location) if is_compressed(location) else open_lines(location)
    with opened as stream:
        for offset in np.unique(positions).tolist():
            stream.seek(offset)
            row = _parse(location, offset, stream.readline(), tsv_columns)
            yield offset, {path: value_at(row, path) for path in columns if is_begun(row, path)}


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """A file without a name: it goes with the last who has it open, however the process ends."""

    file: Any
    nbytes: int


_unpacked_files: LRU[Any, _Unpacked] = LRU(UNPACKED_BYTES)


@contextmanager
def _open_unpacked(location: Location) -> Iterator[Any]:
    """A compressed file's content, which this process unpacks once."""
    info = location.info()
    key = location, info.size, info.mtime_ns
    unpacked = _unpacked_files.get(key)
    if unpacked is None:
        unpacked = _unpack(location)
        _unpacked_files.put(key, unpacked)
    with mmap.mmap(unpacked.file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _unpack(location: Location) -> _Unpacked:
    file = tempfile.TemporaryFile()  # noqa: SIM115  (closed when nobody has it any more)
    with open_lines(location) as stream:
        while part := stream.read(1 << 20):
            file.write(part)
            if file.tell() > UNPACKED_BYTES:
                raise _too_large(location)
        file.flush()
    return _Unpacked(file, file.tell())


def _parse(
    location: Location, offset: int, line: bytes, tsv_columns: Sequence[str]
) -> dict[str, Any]:
    text = _decode(location, "byte", offset, line)
    if tsv_columns:
        return _parse_tsv(location, offset, text, tsv_columns)
    try:
        row = _JSON.decode(text)
    except ValueError as error:
        raise UnreadableInput(f"{location}, byte {offset}: not a JSON line: {error}") from error
    if not isinstance(row, dict):
        raise UnreadableInput(f"{location}, byte {offset}: not a JSON object")
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_distinct)


def _parse_tsv(location: Location, offset: int, text: str, names: Sequence[str]) -> dict[str, Any]:
    values = text.split("\t")
    if len(values) != len(names):
        raise UnreadableInput(
            f"{location}, byte {offset}: expected {len(names)} tab-separated columns "
            f"({', '.join(names)}), got {len(values)}"
        )
    return dict(zip(names, values, strict=True))


def _decode(location: Location, unit: str, place: int, line: bytes) -> str:
    """The text without its end and without the byte order mark of its file, or of one of those that
    were put one after the other.
    """
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{location}, {unit} {place}: not UTF-8 text") from error
