"""The slices of a job: each is read, scored, written and committed by itself, as one output file.

The same input and the same limits always give the same units, so that a second run of a command
finds its files again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import JobInput, OpenedInput, job_input
from shardrank.jobs.inputs.joins import list_pairs
from shardrank.jobs.inputs.parquet import Footer, from_ipc, leaf_path, to_ipc
from shardrank.jobs.inputs.paths import type_at
from shardrank.jobs.inputs.tables import DOCUMENT_COLUMNS, QUERY_COLUMNS, OpenedTable
from shardrank.jobs.units.documents import (
    BUCKET_PAIRS,
    DocumentPlan,
    DocumentUnit,
    num_shared,
    plan_documents,
    scorable,
)
from shardrank.jobs.units.order import Choice, WantedOrder, check_order, settled_order, shared_order

DEFAULT_UNIT_PAIRS = 4_096
UNIT_BYTES = 512 << 20
"""A unit's rows, decoded: what a worker holds at most when its documents lie scattered."""


@dataclass(frozen=True, slots=True)
class SetsUnit:
    """Rows start..stop of one file of candidate sets; num_pairs is estimated from the footer."""

    index: int
    file: int
    start: int
    stop: int
    num_pairs: int

    @property
    def num_queries(self) -> int:
        return self.stop - self.start

    @property
    def content(self) -> bytes:
        return repr((self.file, self.start, self.stop)).encode()


@dataclass(frozen=True, slots=True)
class PairsUnit:
    """Some queries' pairs with their places, as Arrow IPC bytes."""

    index: int
    content: bytes
    num_queries: int
    num_pairs: int

    def pairs(self) -> pa.Table:
        return from_ipc(self.content)


Unit = SetsUnit | PairsUnit


def unit_name(unit: Unit | DocumentUnit) -> str:
    return f"part-{unit.index:06d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All units of a job, done or not, and what a worker needs to read one.

    documents: the units that are scored first, where the order is document-major; `units` are the
    score files in either order, and in query-major order what is scored too.
    """

    input: JobInput
    units: tuple[Unit, ...]
    choice: Choice
    documents: DocumentPlan | None = None

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(hashlib.sha256(unit.content).digest())
        if self.documents is not None:
            digest.update(repr(self.documents.bucket_starts).encode())
            for part in self.documents.units:
                digest.update(hashlib.sha256(part.content).digest())
        return digest.hexdigest()


def plan_units(
    opened: OpenedInput,
    unit_pairs: int = DEFAULT_UNIT_PAIRS,
    order: WantedOrder = "auto",
    bucket_pairs: int = BUCKET_PAIRS,
) -> Plan:
    """Raises UsageError if there is nothing to score, or not in this order."""
    check_order(opened, order)
    choice = settled_order(opened, order)
    documents = None
    if opened.form == "sets":
        job, units = _set_units(opened, unit_pairs)
    else:
        pairs = list_pairs(opened)
        job, units = _pairs_units(opened, pairs, unit_pairs)
        if choice is None:
            is_scorable = scorable(pairs)
            choice = shared_order(order, *num_shared(pairs, is_scorable))
            if choice.order == "document":
                limit = _document_limit(opened, unit_pairs)
                sizes = [unit.num_pairs for unit in units]
                documents = plan_documents(
                    opened.corpus, pairs, is_scorable, limit, sizes, bucket_pairs
                )
    if not units:
        raise UsageError(f"{job.queries.name}: the input has no rows")
    assert choice is not None
    return Plan(job, units, choice, documents)


def _set_units(opened: OpenedInput, unit_pairs: int) -> tuple[JobInput, tuple[Unit, ...]]:
    table = opened.queries
    columns = list(table.table.columns.values())
    candidates = table.table.columns["candidates"]
    doc_id = table.table.candidate_path("doc_id")
    units: list[Unit] = []
    for index, footer in enumerate(table.footers):
        assert footer is not None
        leaf = leaf_path(footer, candidates, doc_id)
        for start, stop, num_pairs in _row_ranges(footer, columns, leaf, unit_pairs):
            units.append(SetsUnit(len(units), index, start, stop, num_pairs))
    doc_ids = type_at(table.types["candidates"].value_type, doc_id)
    assert doc_ids is not None
    return job_input(opened, table.types["query_id"], doc_ids), tuple(units)


def _row_ranges(
    footer: Footer, columns: Sequence[str], leaf: str | None, unit_pairs: int
) -> Iterator[tuple[int, int, int]]:
    """(start, stop, pairs): small row groups together, large ones in equal parts."""
    start = stop = pairs = 0
    cost = 0.0
    for group in footer.row_groups:
        group_pairs = group.columns[leaf][0] if leaf else group.num_rows
        group_cost = max(group_pairs / unit_pairs, group.size_bytes(columns) / UNIT_BYTES)
        if start < stop and cost + group_cost > 1:
            yield start, stop, pairs
            start, pairs, cost = stop, 0, 0.0
        if group_cost > 1:
            parts = min(group.num_rows, int(np.ceil(group_cost)))
            bounds = np.linspace(stop, stop + group.num_rows, parts + 1).astype(int).tolist()
            for low, high in zip(bounds, bounds[1:], strict=False):
                yield low, high, round(group_pairs * (high - low) / group.num_rows)
            start = stop = bounds[-1]
            continue
        stop, pairs, cost = stop + group.num_rows, pairs + group_pairs, cost + group_cost
    if start < stop:
        yield start, stop, pairs


def _pairs_units(
    opened: OpenedInput, pairs: pa.Table, unit_pairs: int
) -> tuple[JobInput, tuple[Unit, ...]]:
    limit = _limit(unit_pairs, opened.corpus, DOCUMENT_COLUMNS)
    codes = pairs["query_index"].to_numpy()
    bounds = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), len(codes)).tolist()
    units = tuple(
        _pairs_unit(index, pairs.slice(bounds[low], bounds[high] - bounds[low]), high - low)
        for index, (low, high) in enumerate(_query_ranges(bounds, limit))
    )
    types = (pairs.schema.field("query_id").type, pairs.schema.field("doc_id").type)
    return job_input(opened, *types), units


def _document_limit(opened: OpenedInput, unit_pairs: int) -> int:
    """A unit's queries are in memory together, as its documents are in query-major order."""
    return _limit(unit_pairs, opened.queries, QUERY_COLUMNS)


def _limit(unit_pairs: int, table: OpenedTable, columns: Sequence[str]) -> int:
    """Pairs of a unit whose rows of this table, which a worker holds, are of UNIT_BYTES at most."""
    return max(1, min(unit_pairs, UNIT_BYTES // table.row_bytes(columns)))


def _query_ranges(bounds: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole queries with at most `limit` pairs, or of one query that has more."""
    low = 0
    for high in range(1, len(bounds)):
        if bounds[high] - bounds[low] > limit and high - 1 > low:
            yield low, high - 1
            low = high - 1
    if low < len(bounds) - 1:
        yield low, len(bounds) - 1


def _pairs_unit(index: int, pairs: pa.Table, num_queries: int) -> PairsUnit:
    return PairsUnit(index, to_ipc(pairs), num_queries, pairs.num_rows)
