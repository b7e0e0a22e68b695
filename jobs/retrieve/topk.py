"""The best k candidates of each query, of any number that come in any order.

Best is the highest score, and of equal scores the lowest id: integers by value, texts by their
UTF-8 bytes. Knows nothing of vectors.
"""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LOWEST = np.finfo(np.float32).min
_NUM_PENDING = 65_536


class TopK:
    """It holds at most twice k candidates a query, and those of one call of `add`.

    thresholds: what a candidate must score at least to be among them, a query each.
    """

    def __init__(self, num_queries: int, top_k: int, id_type: pa.DataType) -> None:
        self.top_k = top_k
        self.thresholds = np.full(num_queries, LOWEST, np.float32)
        self._schema = pa.schema(
            [("query", pa.int32()), ("id", id_type), ("score", pa.float32()), ("rank", pa.int32())]
        )
        self._rows = [self._schema.empty_table()]
        self._num_pending = 0
        self._lock = threading.Lock()

    def add(self, queries: np.ndarray, ids: pa.Array, scores: np.ndarray) -> None:
        """Candidates by the numbers of their queries. Threads may call it side by side."""
        columns = [pa.array(queries, pa.int32()), ids, pa.array(scores, pa.float32())]
        ranks = pa.nulls(len(ids), pa.int32())
        with self._lock:
            self._rows.append(pa.table([*columns, ranks], schema=self._schema))
            self._num_pending += len(ids)
            if self._num_pending > max(_NUM_PENDING, self.top_k * len(self.thresholds)):
                self._keep_best()

    def table(self) -> pa.Table:
        """query, id, score, rank from 1: by query, best first."""
        with self._lock:
            self._keep_best()
            return self._rows[0]

    def _keep_best(self) -> None:
        rows = pa.concat_tables(self._rows)
        queries, scores = rows["query"].to_numpy(), rows["score"].to_numpy()
        order = _best_first(queries, scores, rows["id"])
        queries = queries[order]
        starts = np.flatnonzero(np.diff(queries, prepend=-1))
        lengths = np.diff(np.append(starts, len(order)))
        ranks = np.arange(1, len(order) + 1) - np.repeat(starts, lengths)
        is_kept, is_last = ranks <= self.top_k, ranks == self.top_k
        self.thresholds[queries[is_last]] = scores[order[is_last]]
        kept = rows.take(pa.array(order[is_kept])).combine_chunks()
        ranked = pa.array(ranks[is_kept], pa.int32())
        self._rows = [kept.set_column(3, self._schema.field("rank"), ranked)]
        self._num_pending = 0


def _best_first(queries: np.ndarray, scores: np.ndarray, ids: pa.ChunkedArray) -> np.ndarray:
    """Only where scores are equal are ids compared."""
    order = np.lexsort((-scores, queries))
    is_equal = (np.diff(queries[order]) == 0) & (np.diff(scores[order]) == 0)
    is_tied = np.append(is_equal, False) | np.append(False, is_equal)
    if is_tied.any():
        tied = order[is_tied]
        places = pc.rank(ids.take(pa.array(tied)).combine_chunks(), tiebreaker="dense").to_numpy()
        order[is_tied] = tied[np.lexsort((places, -scores[tied], queries[tied]))]
    return order
