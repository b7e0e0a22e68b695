"""What the CPU stage hands to the scoring actors: prepared pairs, and the rows they are for."""

import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from shardrank.jobs.inputs.parquet import to_ipc
from shardrank.jobs.run.attempts import Attempt
from shardrank.jobs.run.engine import PreparedPairs

CHUNK_BYTES = 32 << 20
CHUNK_PAIRS = 512


@dataclass(slots=True)
class Chunk:
    rows: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[PreparedPairs] = field(default_factory=list)
    size_bytes: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, prepared: PreparedPairs) -> None:
        self.prepared.append(prepared)
        self.size_bytes += prepared.size_bytes

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= CHUNK_BYTES or len(self.rows) >= CHUNK_PAIRS

    def table(self, schema: pa.Schema, unit: int, index: int, is_last: bool) -> pa.Table:
        """One row: unit, chunk, is_last, rows (Arrow IPC), prepared (pickled sets) and the seconds
        since the chunk was begun.
        """
        rows = pa.Table.from_pylist(self.rows, schema=schema)
        return pa.table(
            {
                "unit": pa.array([unit], pa.int32()),
                "chunk": pa.array([index], pa.int32()),
                "is_last": pa.array([is_last]),
                "rows": pa.array([to_ipc(rows)], pa.large_binary()),
                "prepared": pa.array([pickle.dumps(self.prepared, 5)], pa.large_binary()),
                "seconds": pa.array([time.monotonic() - self.started]),
            }
        )


class Chunks:
    """Cuts a unit's rows into chunks, each of which leaves this process when it is cut.

    Where an attempt cut them before, there again: Ray has kept some of its chunks and takes the
    others from this one, while sizes go by what could be read of media, and may differ.
    """

    def __init__(self, schema: pa.Schema, unit: int, attempt: Attempt) -> None:
        self.open = Chunk()
        self._schema = schema
        self._unit = unit
        self._attempt = attempt
        self._known = attempt.cuts()
        self._index = 0

    def full(self) -> Iterator[pa.Table]:
        """The open chunk if this is where it ends; another one is open then."""
        known = self._known.get(self._index)
        if len(self.open.rows) < known if known is not None else not self.open.is_full:
            return
        if known is None:
            self._attempt.cut(self._index, len(self.open.rows))
        yield self._table(is_last=False)
        self.open, self._index = Chunk(), self._index + 1

    def last(self) -> pa.Table:
        return self._table(is_last=True)

    def _table(self, is_last: bool) -> pa.Table:
        return self.open.table(self._schema, self._unit, self._index, is_last)
