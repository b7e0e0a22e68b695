"""Vectors in Parquet files, of an `embed` job or of anybody, read as blocks of unit rows.

A block always has one shape: so equal vectors have equal scores, wherever in the files they are.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from shardrank.jobs.inputs.parquet import batches, open_parquet, present
from shardrank.jobs.storage import Location

BLOCK_ROWS = 4_096
SHARE_ROWS = 16 * BLOCK_ROWS
"""The last block of a share is filled up with zeros."""
NUM_SHOWN_IDS = 20
"""Of the rows that were skipped for one reason, so many are named."""
EMBEDDING, ERROR_CODE = "embedding", "error_code"

NULL_ID, NO_VECTOR, WRONG_LENGTH = "null_id", "no_vector", "wrong_length"
NOT_FINITE, ZERO_VECTOR = "not_finite", "zero_vector"

_UNIT = 1e-6
_SMALLEST, _LARGEST = 1e-20, 1e30
"""Squared lengths beyond these are computed in float64."""

Id = int | str
Buffers = Callable[[], np.ndarray]


@dataclass(slots=True)
class Tally:
    """What became of the rows that were read; ids: the first of those that were skipped, by code.

    unwanted: rows that a filter left out.
    """

    num_rows: int = 0
    num_unwanted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    ids: dict[str, list[Id | None]] = field(default_factory=dict)

    def skip(self, code: str, ids: Sequence[Id | None]) -> None:
        if ids:
            self.skipped[code] += len(ids)
            self._name(code, ids)

    def _name(self, code: str, ids: Sequence[Id | None]) -> None:
        known = self.ids.setdefault(code, [])
        known.extend(ids[: NUM_SHOWN_IDS - len(known)])

    def add(self, other: "Tally") -> None:
        self.num_rows += other.num_rows
        self.num_unwanted += other.num_unwanted
        self.skipped.update(other.skipped)
        for code, ids in other.ids.items():
            self._name(code, ids)

    @property
    def num_vectors(self) -> int:
        """Those that can be searched with, or for."""
        return self.num_rows - self.num_unwanted - self.skipped.total()


@dataclass(frozen=True, slots=True)
class Block:
    """Vectors of length one in the first rows, one for each id, and zeros in the others."""

    ids: pa.Array
    matrix: np.ndarray  # (BLOCK_ROWS, dimensions) float32


@dataclass(frozen=True, slots=True)
class Piece:
    """One row group of a file."""

    file: Location
    group: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Vectors:
    """Where the vectors are. wanted: the ids that a filter leaves, None: all."""

    id_column: str
    id_type: pa.DataType
    dimensions: int
    pieces: tuple[Piece, ...]
    wanted: frozenset[Id] | None = None

    @property
    def num_rows(self) -> int:
        return sum(piece.num_rows for piece in self.pieces)

    def shares(self, num_readers: int) -> list[tuple[Piece, ...]]:
        """The pieces in runs of about as many rows, several for each reader."""
        most = min(SHARE_ROWS, max(BLOCK_ROWS, self.num_rows // (4 * num_readers)))
        shares: list[list[Piece]] = []
        num = most
        for piece in self.pieces:
            if num >= most:
                shares.append([])
                num = 0
            shares[-1].append(piece)
            num += piece.num_rows
        return [tuple(share) for share in shares]

    def blocks(
        self, pieces: Sequence[Piece], tally: Tally, buffer: Buffers | None = None
    ) -> Iterator[Block]:
        """Their vectors in the files' order; `buffer` gives the matrix of the next block."""
        rows = (
            valid
            for file, group in groupby(pieces, lambda piece: piece.file)
            for batch in _batches(file, [piece.group for piece in group], self.id_column)
            if (valid := self._valid(batch, tally))[0]
        )
        return unit_blocks(rows, self.dimensions, tally, buffer)

    def _valid(self, batch: pa.Table, tally: Tally) -> tuple[pa.Array, np.ndarray]:
        """The ids and vectors of the rows that have both; what the others lack is tallied."""
        tally.num_rows += batch.num_rows
        ids = _one(batch[self.id_column].cast(self.id_type))
        if self.wanted is not None:
            is_wanted = pa.array([each in self.wanted for each in ids.to_pylist()], pa.bool_())
            batch, ids = batch.filter(is_wanted), ids.filter(is_wanted)
            tally.num_unwanted += len(is_wanted) - len(ids)
        vectors = _one(batch[EMBEDDING])
        lengths = pc.fill_null(pc.list_value_length(vectors), -1).to_numpy(zero_copy_only=False)
        is_valid = (lengths == self.dimensions) & ids.is_valid().to_numpy(zero_copy_only=False)
        if not is_valid.all():
            codes = _codes(batch, ids, lengths)
            wrong = np.flatnonzero(~is_valid)
            for code in dict.fromkeys(codes[row] for row in wrong):
                rows = [row for row in wrong if codes[row] == code]
                tally.skip(code, ids.take(pa.array(rows)).to_pylist())
            kept = pa.array(is_valid)
            ids, vectors = ids.filter(kept), vectors.filter(kept)
        values = vectors.flatten().to_numpy(zero_copy_only=False)
        return ids, values.reshape(len(ids), self.dimensions)


def _batches(file: Location, groups: Sequence[int], id_column: str) -> Iterator[pa.Table]:
    with open_parquet(file) as opened:
        columns = present(opened, [id_column, EMBEDDING, ERROR_CODE])
        for group in groups:
            for _, batch in batches(opened, group, columns):
                yield batch


def _one(column: pa.ChunkedArray) -> pa.Array:
    """The column without a copy, if it is in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _codes(batch: pa.Table, ids: pa.Array, lengths: np.ndarray) -> list[str]:
    """What is wrong with each row, if anything is."""
    has_codes = ERROR_CODE in batch.column_names
    known = batch[ERROR_CODE].to_pylist() if has_codes else [None] * batch.num_rows
    return [
        code or (NULL_ID if id_ is None else NO_VECTOR if length < 0 else WRONG_LENGTH)
        for code, id_, length in zip(known, ids.to_pylist(), lengths.tolist(), strict=True)
    ]


def unit_blocks(
    rows: Iterator[tuple[pa.Array, np.ndarray]],
    dimensions: int,
    tally: Tally,
    buffer: Buffers | None = None,
) -> Iterator[Block]:
    """Ids and vectors of any length and number, cut into blocks of unit vectors; a vector that has
    no direction is tallied and left out.
    """
    new = buffer or (lambda: np.empty((BLOCK_ROWS, dimensions), np.float32))
    block: np.ndarray | None = None
    ids: list[pa.Array] = []
    num = 0
    for found, vectors in rows:
        start = 0
        while start < len(vectors):
            block = new() if block is None else block
            part = vectors[start : start + BLOCK_ROWS - num]
            with np.errstate(over="ignore"):  # of float64: infinite, which is not finite
                block[num : num + len(part)] = part
            ids.append(found.slice(start, len(part)))
            start, num = start + len(part), num + len(part)
            if num == BLOCK_ROWS:
                yield _unit(block, pa.concat_arrays(ids), tally)
                block, ids, num = None, [], 0
    if block is not None:
        yield _unit(block, pa.concat_arrays(ids), tally)


def _unit(block: np.ndarray, ids: pa.Array, tally: Tally) -> Block:
    """Rows that are unit vectors already stay as they are, to the last bit."""
    rows = block[: len(ids)]
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
        others = np.flatnonzero(~(np.abs(squares - 1) <= _UNIT))
        lengths = np.sqrt(squares[others])
        is_extreme = ~((squares[others] > _SMALLEST) & (squares[others] < _LARGEST))
        extreme = rows[others[is_extreme]].astype(np.float64)
        lengths[is_extreme] = np.linalg.norm(extreme, axis=1)
        rows[others] /= lengths[:, None]
    is_kept = np.ones(len(ids), bool)
    for code, is_bad in ((NOT_FINITE, ~np.isfinite(lengths)), (ZERO_VECTOR, lengths == 0)):
        tally.skip(code, ids.take(pa.array(others[is_bad])).to_pylist())
        is_kept[others[is_bad]] = False
    if not is_kept.all():
        kept, ids = rows[is_kept], ids.filter(pa.array(is_kept))
        block[: len(kept)] = kept
    block[len(ids) :] = 0
    return Block(ids, block)


def is_vector(kind: pa.DataType) -> bool:
    is_list = pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
    return is_list and pt.is_floating(kind.value_type)
