"""Prometheus metrics of the endpoint, and their text form.

With PROMETHEUS_MULTIPROC_DIR set, as the deployment sets it, the text covers all replicas of one
server on the node; prometheus_client reads that variable when it is imported.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_FILL = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SUM = "livesum"


_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Observes requests and, as the queue's observer, batches."""

    def __init__(self) -> None:
        _prepare_directory()
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "shardrank_requests", "Requests by route and status", ["route", "status"], registry=own
        )
        self._latency = Histogram(
            "shardrank_request_seconds", "Whole requests", ["route"], buckets=_SECONDS, registry=own
        )
        self._pairs = Counter("shardrank_pairs", "Pairs scored", registry=own)
        self._tokens = Counter("shardrank_tokens", "Tokens scored", registry=own)
        self._failed = Counter(
            "shardrank_failed_pairs", "Pairs with an error, by code", ["code"], registry=own
        )
        self._batches = Counter("shardrank_batches", "Forwards of the queue", registry=own)
        self._fill = Histogram(
            "shardrank_batch_fill", "Share of the token budget", buckets=_FILL, registry=own
        )
        self._batch_seconds = Histogram(
            "shardrank_batch_seconds", "Time of a batch", buckets=_SECONDS, registry=own
        )
        self._queue_pairs = Gauge(
            "shardrank_queue_pairs", "Pairs waiting", multiprocess_mode=_SUM, registry=own
        )
        self._queue_tokens = Gauge(
            "shardrank_queue_tokens", "Tokens waiting", multiprocess_mode=_SUM, registry=own
        )
        self._cache = Counter(
            "shardrank_vision_cache", "Lookups of vision features", ["result"], registry=own
        )
        self._cache_seen = (0, 0)

    def request(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Unknown paths are one route, so that strangers cannot make series; so is what was
        refused before a route was looked for.
        """
        unrouted = "refused" if status in (401, 413, 429) else "other"
        route = getattr(scope.get("route"), "path", unrouted)
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def failed_pair(self, code: str) -> None:
        self._failed.labels(code).inc()

    def batch(self, num_pairs: int, num_tokens: int, fill: float, seconds: float) -> None:
        self._batches.inc()
        self._pairs.inc(num_pairs)
        self._tokens.inc(num_tokens)
        self._fill.observe(fill)
        self._batch_seconds.observe(seconds)

    def queue(self, num_pairs: int, num_tokens: int) -> None:
        self._queue_pairs.set(num_pairs)
        self._queue_tokens.set(num_tokens)

    def cache(self, num_hits: int, num_misses: int) -> None:
        """Totals of the engine's cache so far."""
        hits, misses = self._cache_seen
        self._cache.labels("hit").inc(max(0, num_hits - hits))
        self._cache.labels("miss").inc(max(0, num_misses - misses))
        self._cache_seen = num_hits, num_misses

    def close(self) -> None:
        """This process observes no more. The last one of a server removes their directory."""
        directory = os.environ.get(_DIRECTORY)
        if directory is None:
            return
        mark_process_dead(os.getpid(), directory)
        if not any(pid != os.getpid() and _is_alive(pid) for pid in _observers(directory)):
            shutil.rmtree(directory, ignore_errors=True)

    def text(self) -> bytes:
        if _DIRECTORY not in os.environ:
            return generate_latest(self._registry)
        _prepare_directory()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


def _prepare_directory() -> None:
    """Makes the replicas' common directory, without the gauges of those that were killed."""
    directory = os.environ.get(_DIRECTORY)
    if directory is None:
        return
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{directory} must be a directory of this user alone")
    for pid in _observers(directory):
        if not _is_alive(pid):
            mark_process_dead(pid, directory)


def _observers(directory: str) -> set[int]:
    """Process ids, by the files that they write."""
    stems = (path.stem.rpartition("_")[2] for path in Path(directory).glob("*_*.db"))
    return {int(pid) for pid in stems if pid.isdecimal()}


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
