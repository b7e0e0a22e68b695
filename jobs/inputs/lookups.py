"""Rows of Parquet files by their positions; the process keeps the row groups that they are of.

Lines, whose positions are byte offsets, are looked up in lines.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardrank.actors.lru import LRU
from shardrank.jobs.inputs.parquet import (
    batches,
    is_small,
    open_parquet,
    present,
    row_groups,
    to_rows,
)
from shardrank.jobs.storage import Location

_kept: LRU[Any, pa.Table] = LRU(256 << 20)
"""Decoded row groups of this worker process."""


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
