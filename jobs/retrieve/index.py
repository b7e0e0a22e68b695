"""An approximate index of FAISS in memory, and how much of the exact result it finds."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from shardrank.jobs.errors import UsageError
from shardrank.jobs.retrieve.topk import TopK
from shardrank.jobs.retrieve.vectors import Tally, Vectors

Kind = Literal["ivf", "hnsw"]

_HNSW_LINKS = 32
_TRAINING_ROWS = 64
"""For each cell of an inverted file: FAISS asks for 39 at least."""


class Index:
    """All vectors, and what finds the nearest ones without looking at all of them.

    effort: cells that are probed (ivf), or candidates that are kept open (hnsw), of each query.
    """

    def __init__(self, kind: Kind, vectors: Vectors, top_k: int, num_threads: int) -> None:
        self._faiss = faiss()
        self._faiss.omp_set_num_threads(num_threads)
        self.kind, self.tally = kind, Tally()
        self.effort = 1 if kind == "ivf" else top_k
        self._vectors = vectors
        self._index = self._empty()
        self._ids: list[pa.Array] = []

    def fill(self, advance: Callable[[Tally], None]) -> None:
        """Read all vectors; advance is told how far that is."""
        for block in self._vectors.blocks(self._vectors.pieces, self.tally):
            self._index.add(block.matrix[: len(block.ids)])
            self._ids.append(block.ids)
            advance(self.tally)

    @property
    def most_effort(self) -> int:
        return self._index.nlist if self.kind == "ivf" else max(1, self._index.ntotal)

    def search(self, queries: np.ndarray, top_k: int) -> pa.Table:
        """What the index finds, as TopK.table has it."""
        if self.kind == "ivf":
            self._index.nprobe = self.effort
        else:
            self._index.hnsw.efSearch = self.effort
        scores, rows = self._index.search(queries, top_k)
        best = TopK(len(queries), top_k, self._vectors.id_type)
        found, places = np.nonzero(rows >= 0)
        if len(found):
            ids = pa.chunked_array(self._ids).take(pa.array(rows[found, places]))
            best.add(found, ids, scores[found, places])
        return best.table()

    def tune(self, queries: np.ndarray, exact: pa.Table, top_k: int, least: float) -> None:
        """Double the effort until the index finds so much of what is exact for these queries."""
        while self.effort < self.most_effort:
            if recall(self.search(queries, top_k), exact) >= least:
                return
            self.effort = min(2 * self.effort, self.most_effort)

    def _empty(self) -> Any:
        dimensions, metric = self._vectors.dimensions, self._faiss.METRIC_INNER_PRODUCT
        if self.kind == "hnsw":
            return self._faiss.IndexHNSWFlat(dimensions, _HNSW_LINKS, metric)
        num_cells = max(1, round(self._vectors.num_rows**0.5))
        sample = self._sample(num_cells * _TRAINING_ROWS)
        num_cells = max(1, min(num_cells, len(sample)))
        cells = self._faiss.IndexFlatIP(dimensions)
        index = self._faiss.IndexIVFFlat(cells, dimensions, num_cells, metric)
        index.cp.min_points_per_centroid = 1  # a small corpus is no reason to warn
        index.train(sample)
        return index

    def _sample(self, num_rows: int) -> np.ndarray:
        """About so many vectors, evenly spread over the files."""
        step = max(1, self._vectors.num_rows // num_rows)
        blocks = self._vectors.blocks(self._vectors.pieces, Tally())
        sample = [block.matrix[: len(block.ids) : step].copy() for block in blocks]
        if not sample or not sum(map(len, sample)):
            raise UsageError("--index: there is no vector to build it of")
        return np.concatenate(sample)


def recall(found: pa.Table, exact: pa.Table) -> float:
    """The share of the exact result's documents that was found, over all queries together."""
    pairs = [
        set(zip(table["query"].to_pylist(), table["id"].to_pylist(), strict=True))
        for table in (found, exact)
    ]
    return len(pairs[0] & pairs[1]) / max(1, len(pairs[1]))


def faiss() -> Any:
    """The package. Raises UsageError where it is not installed."""
    try:
        return import_module("faiss")
    except ModuleNotFoundError as error:
        raise UsageError(
            "--index needs the package faiss: pip install 'shardrank[retrieve]'"
        ) from error
