"""Exact search as Ray tasks, each of one CPU: a part of the vectors, for all queries of a pass."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import ray

from shardrank.jobs.cluster import own_errors
from shardrank.jobs.retrieve.search import Search, search_source
from shardrank.jobs.retrieve.topk import TopK
from shardrank.jobs.retrieve.vectors import Piece, Tally, Vectors

_TASKS_A_CPU = 4
"""So that a slow one at the end is short."""


def search_on_ray(
    queries: np.ndarray, vectors: Vectors, top_k: int, advance: Callable[[Tally], None]
) -> tuple[pa.Table, Tally]:
    """The search of one process on the cluster that it is in; what tasks find is merged."""
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    shares = vectors.shares(num_cpus)
    num_tasks = min(len(shares), _TASKS_A_CPU * num_cpus)
    ends = np.linspace(0, len(shares), num_tasks + 1).astype(int)
    waiting = [shares[first:last] for first, last in zip(ends[:-1], ends[1:], strict=True)]
    best, total = TopK(len(queries), top_k, vectors.id_type), Tally()
    task = ray.remote(num_cpus=1)(_search_shares)
    with own_errors():
        shared = ray.put(queries), ray.put(vectors)
        pending: list[ray.ObjectRef] = []
        while waiting or pending:
            while waiting and len(pending) < 2 * num_cpus:
                pending.append(task.remote(*shared, waiting.pop(), top_k))
            (done, *_), pending = ray.wait(pending, num_returns=1)
            found, tally = ray.get(done)
            best.add(found["query"].to_numpy(), found["id"].combine_chunks(), found["score"])
            total.add(tally)
            advance(tally)
    return best.table(), total


def _search_shares(
    queries: np.ndarray, vectors: Vectors, shares: Sequence[tuple[Piece, ...]], top_k: int
) -> tuple[pa.Table, Tally]:
    search = Search(queries, top_k, vectors.id_type)
    tally = search_source(search, vectors, 1, shares=shares)
    return search.best.table(), tally
