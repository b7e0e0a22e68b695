"""Digests of what input files hold, by which a file that was only touched, or only grew, is known.

A Parquet file's digest is of its rows, however they are laid out and compressed; another file's is
of its bytes. Either can be taken of the first part of a file.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from shardrank.jobs.inputs.parquet import read_range
from shardrank.jobs.inputs.paths import is_list, plain_type
from shardrank.jobs.inputs.tables import DataFile
from shardrank.jobs.storage import open_input

_READ_BYTES = 16 << 20


def content_digest(file: DataFile, columns: Sequence[str], stop: int) -> str:
    """The digest of the first `stop` rows' columns, or of the first `stop` bytes of a text file.

    Raises UnreadableInput.
    """
    if file.is_parquet:
        rows = TableDigest()
        for part in read_range(file.location, 0, stop, columns):
            rows.add(part)
        return rows.hexdigest()
    digest = hashlib.sha256()
    with open_input(file.location) as stream:
        while stop > 0 and (content := stream.read(min(stop, _READ_BYTES))):
            digest.update(content)
            stop -= len(content)
    return digest.hexdigest()


def ends_a_line(file: DataFile, stop: int) -> bool:
    """Whether a plain text file's first `stop` bytes are whole lines, so that what follows is more
    of them.
    """
    if stop == 0:
        return True
    with open_input(file.location) as stream:
        stream.seek(stop - 1)
        return b"\n" in stream.read(2)


class TableDigest:
    """The digest of a table's values, added in pieces: where one ends leaves no trace."""

    def __init__(self) -> None:
        self._streams: dict[str, Any] = defaultdict(hashlib.sha256)  # one a part of a column
        self._num_rows = 0

    def add(self, rows: pa.Table) -> None:
        self._num_rows += rows.num_rows
        for name in rows.schema.names:
            for chunk in rows[name].chunks:
                _feed(self._streams, name, chunk)

    def hexdigest(self) -> str:
        parts = [f"{name} {self._streams[name].hexdigest()}" for name in sorted(self._streams)]
        return hashlib.sha256("\n".join([str(self._num_rows), *parts]).encode()).hexdigest()


def _feed(streams: dict[str, Any], name: str, values: pa.Array) -> None:
    """Nulls are fed as such alone: a column of nulls is the same whatever type it comes to have."""
    kind = values.type
    if pt.is_dictionary(kind):
        for part in _decoded(values):
            _feed(streams, name, part)
        return
    if not len(values):
        return
    if _has_view(kind):  # which drop_null does not know
        values = values.cast(plain_type(kind))
        kind = values.type
    streams[f"{name} valid"].update(values.is_valid().to_numpy(zero_copy_only=False).tobytes())
    values = values.drop_null() if values.null_count else values
    if not len(values):
        return
    if pt.is_struct(kind):
        for index, field in enumerate(kind):
            _feed(streams, f"{name}.{field.name}", pc.struct_field(values, index))
    elif is_list(kind):
        lengths = pc.list_value_length(values).cast(pa.int64())
        streams[f"{name} length"].update(lengths.to_numpy().tobytes())
        _feed(streams, f"{name}[]", pc.list_flatten(values))
    elif pt.is_floating(kind):
        numbers = values.cast(pa.float64())
        streams[name].update(numbers.to_numpy(zero_copy_only=False).tobytes())
    elif pt.is_map(kind):
        streams[name].update(repr(values.to_pylist()).encode("utf-8", "backslashreplace"))
    else:
        _feed_bytes(streams, name, values)


def _has_view(kind: pa.DataType) -> bool:
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return pt.is_string_view(kind) or pt.is_binary_view(kind) or any(map(_has_view, inner))


def _decoded(values: pa.DictionaryArray) -> Iterator[pa.Array]:
    """The values in parts of about _READ_BYTES: a long one may stand in every row."""
    longest = 8
    if not pt.is_primitive(values.type.value_type):
        lengths = pc.binary_length(values.dictionary.cast(pa.large_binary()))
        longest = max(longest, pc.max(lengths).as_py() or 0)
    step = max(1, _READ_BYTES // longest)
    for start in range(0, len(values), step):
        yield values.slice(start, step).dictionary_decode()


def _feed_bytes(streams: dict[str, Any], name: str, values: pa.Array) -> None:
    """Texts and bytes as they are, everything else as Arrow writes it."""
    if not (pt.is_binary(values.type) or pt.is_large_binary(values.type)):
        values = values if pt.is_fixed_size_binary(values.type) else values.cast(pa.large_string())
    values = values.cast(pa.large_binary())
    _, offsets, content = values.buffers()
    bounds = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    streams[f"{name} length"].update(np.diff(bounds).tobytes())
    if content is not None and len(bounds):
        streams[name].update(memoryview(content)[bounds[0] : bounds[-1]])
