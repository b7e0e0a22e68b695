"""Exact search: the products of all queries with all vectors, block by block.

Knows vectors and ids, neither files' manifests nor Ray.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from shardrank.jobs.retrieve.topk import LOWEST, TopK
from shardrank.jobs.retrieve.vectors import BLOCK_ROWS, Block, Buffers, Tally, unit_blocks

_PART_QUERIES = 1_024
_GROUP = 64
"""Scores whose largest alone is compared first: few of a large corpus are among the best."""
_TIGHTEN = 4
"""Where so many times k candidates a query would be taken of one block, its own k-th best counts
too."""


class Source(Protocol):
    """Vectors in shares that are read side by side, as Vectors has them."""

    @property
    def dimensions(self) -> int: ...

    def shares(self, num_readers: int) -> Sequence[Any]: ...

    def blocks(self, share: Any, tally: Tally, buffer: Buffers) -> Iterator[Block]: ...


class Search:
    """Queries, of length one, and the best of all blocks that were added."""

    def __init__(self, queries: np.ndarray, top_k: int, id_type: pa.DataType) -> None:
        num_parts = max(1, -(-len(queries) // _PART_QUERIES))
        self._parts = np.array_split(np.ascontiguousarray(queries, np.float32), num_parts)
        self._own = threading.local()
        self.best = TopK(len(queries), top_k, id_type)

    def add(self, block: Block) -> None:
        """Threads may call it side by side, each with a block of its own."""
        vectors, first = torch.from_numpy(block.matrix), 0
        for part in self._parts:
            scores = self._room()[: len(part)]  # (queries of the part, BLOCK_ROWS)
            torch.mm(torch.from_numpy(part), vectors.T, out=scores)
            scores[:, len(block.ids) :] = -torch.inf
            queries, rows, values = self._candidates(scores, first)
            if len(values):
                self.best.add(queries, block.ids.take(pa.array(rows)), values)
            first += len(part)

    def _room(self) -> torch.Tensor:
        """This thread's, for scores: allocated for each block anew, memory would be in pieces."""
        if not hasattr(self._own, "room"):
            self._own.room = torch.empty(len(self._parts[0]), BLOCK_ROWS)
        return self._own.room

    def _candidates(
        self, scores: torch.Tensor, first: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, row of the block, score) of what may be among the best of its query."""
        num_queries, top_k = len(scores), self.best.top_k
        least = torch.from_numpy(self.best.thresholds[first : first + num_queries].copy())
        groups = scores.view(num_queries, BLOCK_ROWS // _GROUP, _GROUP)
        is_above = groups.amax(2) >= least[:, None]
        if top_k < BLOCK_ROWS and is_above.sum() * _GROUP > _TIGHTEN * top_k * num_queries:
            own = scores.topk(top_k, sorted=False).values.amin(1).clamp_min(float(LOWEST))
            least = torch.maximum(least, own)
            is_above = groups.amax(2) >= least[:, None]
        queries, numbers = is_above.nonzero(as_tuple=True)
        values = groups[queries, numbers]  # (groups that are looked at, _GROUP)
        places, within = (values >= least[queries, None]).nonzero(as_tuple=True)
        rows = numbers[places] * _GROUP + within
        return (
            (queries[places] + first).numpy(),
            rows.numpy(),
            values[places, within].numpy(),
        )


def search_source(
    search: Search,
    source: Source,
    num_threads: int,
    advance: Callable[[Tally], None] = lambda _: None,
    shares: Sequence[Any] | None = None,
) -> Tally:
    """Add all blocks of a source, or of some of its shares, with so many threads that read and as
    many that compute: what is in memory does not grow with the number of vectors.

    Each product is computed by one thread, so that scores do not depend on the number of threads.
    """
    free: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(2 * num_threads):
        free.put(np.empty((BLOCK_ROWS, source.dimensions), np.float32))

    def add(block: Block) -> None:
        try:
            search.add(block)
        finally:
            free.put(block.matrix)

    def read(share: Any) -> Tally:
        tally = Tally()
        added = [computing.submit(add, block) for block in source.blocks(share, tally, free.get)]
        for each in added:
            each.result()
        return tally

    total = Tally()
    with (
        ThreadPoolExecutor(num_threads, "search", torch.set_num_threads, (1,)) as computing,
        ThreadPoolExecutor(num_threads) as readers,
    ):
        found = [readers.submit(read, share) for share in shares or source.shares(num_threads)]
        try:
            for each in as_completed(found):
                total.add(each.result())
                advance(each.result())
        except BaseException:
            readers.shutdown(wait=False, cancel_futures=True)
            raise
    return total


def search(
    queries: np.ndarray,
    vectors: np.ndarray | Iterable[np.ndarray],
    top_k: int,
    num_threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows of each query by cosine: (scores, row numbers), both (queries, top_k), best
    first and equal scores by row; -inf and -1 where there are fewer rows.

    vectors: one matrix, or matrices whose rows are counted on. Raises ValueError for a vector of
    either side that is zero or not finite.
    """
    queries = np.atleast_2d(queries)
    own = _Arrays("query", queries.shape[1], [queries])
    unit = [block.matrix[: len(block.ids)] for block in own.blocks(None, Tally())]
    found = Search(np.concatenate(unit or [queries]), top_k, pa.int64())
    matrices = [vectors] if isinstance(vectors, np.ndarray) else vectors
    source = _Arrays("vector", queries.shape[1], matrices)
    search_source(found, source, num_threads)
    best = found.best.table()
    scores = np.full((len(queries), top_k), -np.inf, np.float32)
    numbers = np.full((len(queries), top_k), -1, np.int64)
    places = best["query"].to_numpy(), best["rank"].to_numpy() - 1
    scores[places], numbers[places] = best["score"].to_numpy(), best["id"].to_numpy()
    return scores, numbers


@dataclass(frozen=True, slots=True)
class _Arrays:
    """Matrices as a source: one share, the rows' numbers their ids."""

    noun: str
    dimensions: int
    matrices: Iterable[np.ndarray]

    def shares(self, num_readers: int) -> Sequence[Any]:
        return [None]

    def blocks(self, share: Any, tally: Tally, buffer: Buffers | None = None) -> Iterator[Block]:
        for block in unit_blocks(self._rows(), self.dimensions, tally, buffer):
            for code, ids in tally.ids.items():
                raise ValueError(f"{self.noun} {ids[0]} has no direction: {code}")
            yield block

    def _rows(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        first = 0
        for matrix in self.matrices:
            if matrix.ndim != 2 or matrix.shape[1] != self.dimensions:
                raise ValueError(
                    f"vectors must have the queries' {self.dimensions} dimensions, got a matrix of "
                    f"shape {matrix.shape}"
                )
            yield pa.array(np.arange(first, first + len(matrix))), matrix
            first += len(matrix)
