"""The slices of a job: each is read, scored, written and committed by itself, as one output file.

The same input and the same limits always give the same units, so that a second run of a command
finds its files again.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, islice, pairwise

import numpy as np
import pyarrow as pa

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.columns import DOCUMENT_COLUMNS, QUERY_COLUMNS
from shardrank.jobs.inputs.digests import TableDigest
from shardrank.jobs.inputs.forms import JobInput, OpenedInput, job_input
from shardrank.jobs.inputs.joins import list_pairs
from shardrank.jobs.inputs.parquet import Footer, from_ipc, leaf_path, to_ipc
from shardrank.jobs.inputs.paths import type_at
from shardrank.jobs.inputs.tables import OpenedTable
from shardrank.jobs.units.contents import settled_ranks
from shardrank.jobs.units.documents import (
    BUCKET_PAIRS,
    DocumentPlan,
    DocumentUnit,
    num_shared,
    plan_documents,
    scorable,
)
from shardrank.jobs.units.growth import Held, gaps, placed
from shardrank.jobs.units.order import Choice, WantedOrder, check_order, settled_order, shared_order

logger = logging.getLogger(__name__)

DEFAULT_UNIT_PAIRS = 4_096
KEPT = "kept"
"""In the place of an error code while a unit is scored: its earlier file has the pair's result."""
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

    @property
    def kept(self) -> bytes:
        """Nothing: a row that grew is another row."""
        return b""


@dataclass(frozen=True, slots=True)
class PairsUnit:
    """Some queries' pairs with their places, as Arrow IPC bytes.

    kept: a bit a pair, whether the unit's earlier file has its result; empty if that has none.
    """

    index: int
    content: bytes
    num_queries: int
    num_pairs: int
    kept: bytes = b""

    def pairs(self) -> pa.Table:
        return from_ipc(self.content)

    def is_kept(self) -> np.ndarray:
        """(num_pairs,) bool."""
        bits = np.unpackbits(np.frombuffer(self.kept, np.uint8), count=self.num_pairs)
        return bits.astype(bool) if self.kept else np.zeros(self.num_pairs, bool)


Unit = SetsUnit | PairsUnit


def unit_digest(unit: Unit) -> str:
    """What the unit's score file says it was made of; the same when other queries come to it."""
    if isinstance(unit, SetsUnit):
        return hashlib.sha256(unit.content).hexdigest()
    digest = TableDigest()
    digest.add(unit.pairs().drop_columns(["query_index"]))
    return digest.hexdigest()


def unit_name(unit: Unit | DocumentUnit) -> str:
    return f"part-{unit.index:06d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All units of a job, done or not, and what a worker needs to read one.

    documents: the units that are scored first, where the order is document-major; `units` are the
    score files in either order, and in query-major order what is scored too. has_grown: the input
    grew since the job began, so that a score file may be there and be of a part of its unit.
    """

    input: JobInput
    units: tuple[Unit, ...]
    choice: Choice
    documents: DocumentPlan | None = None
    has_grown: bool = False

    @property
    def fingerprint(self) -> str:
        """The digest of all units; of document-major ones not where what is scored decides them."""
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(hashlib.sha256(unit.content).digest())
        if self.documents is not None and not self.has_grown:
            digest.update(repr(self.documents.bucket_starts).encode())
            for unit_of_documents in self.documents.units:
                digest.update(hashlib.sha256(unit_of_documents.content).digest())
        return digest.hexdigest()


def plan_units(
    opened: OpenedInput,
    unit_pairs: int = DEFAULT_UNIT_PAIRS,
    order: WantedOrder = "auto",
    bucket_pairs: int = BUCKET_PAIRS,
    held: Held | None = None,
) -> Plan:
    """held: what an output has already, for an input that grew.

    Raises UsageError if there is nothing to score, or not in this order.
    """
    check_order(opened, order)
    choice, documents = settled_order(opened, order), None
    if opened.form == "sets":
        job, units = _set_units(opened, unit_pairs, held)
    else:
        pairs, is_kept, job, units = _pairs_units(opened, unit_pairs, held)
        if choice is None:
            is_scorable = scorable(pairs)
            choice = shared_order(order, *num_shared(pairs, is_scorable))
            if choice.order == "document":
                # a unit's queries are in memory together, as its documents are in query-major order
                limit = _limit(unit_pairs, opened.queries, QUERY_COLUMNS)
                sizes = [unit.num_pairs for unit in units]
                documents = plan_documents(
                    opened.corpus, pairs, is_scorable & ~is_kept, limit, sizes, bucket_pairs
                )
    if not units:
        raise UsageError(f"{job.queries.name}: the input has no rows")
    assert choice is not None
    return Plan(job, units, choice, documents, has_grown=held is not None)


def _set_units(
    opened: OpenedInput, unit_pairs: int, held: Held | None
) -> tuple[JobInput, tuple[Unit, ...]]:
    table = opened.queries
    columns = list(table.table.columns.values())
    candidates = table.table.columns["candidates"]
    doc_id = table.table.candidate_path("doc_id")
    units: list[SetsUnit] = []
    for index, footer in enumerate(table.footers):
        assert footer is not None
        leaf = leaf_path(footer, candidates, doc_id)
        for start, stop, num_pairs in _row_ranges(footer, columns, leaf, unit_pairs):
            units.append(SetsUnit(len(units), index, start, stop, num_pairs))
    if held is not None:
        units = list(_grown_sets(units, held))
    doc_ids = type_at(table.types["candidates"].value_type, doc_id)
    assert doc_ids is not None
    return job_input(opened, table.types["query_id"], doc_ids), tuple(units)


def _grown_sets(planned: Sequence[SetsUnit], held: Held) -> Iterator[SetsUnit]:
    """The units that the output has, and new ones over the rows that no unit has yet."""
    num_rows: dict[int, int] = {}
    for unit in planned:
        num_rows[unit.file] = max(unit.stop, num_rows.get(unit.file, 0))
    files = [num_rows.get(file, 0) for file in range(max(num_rows, default=-1) + 1)]
    units = [SetsUnit(*row.values()) for row in held.table.to_pylist()]
    numbers = held.free_units()
    for file, low, high in gaps(files, held):
        for unit in planned:
            start, stop = max(unit.start, low), min(unit.stop, high)
            if unit.file == file and start < stop:
                share = (stop - start) / (unit.stop - unit.start)
                num_pairs = round(unit.num_pairs * share)
                units.append(SetsUnit(next(numbers), file, start, stop, num_pairs))
    yield from sorted(units, key=lambda unit: unit.index)


def _row_ranges(
    footer: Footer, columns: Sequence[str], leaf: str | None, unit_pairs: int
) -> Iterator[tuple[int, int, int]]:
    """(start, stop, pairs): small row groups together, large ones in equal parts."""
    groups = footer.row_groups
    pairs = [group.columns[leaf][0] if leaf else group.num_rows for group in groups]
    sizes = [group.size_bytes(columns) / UNIT_BYTES for group in groups]
    costs = [max(num / unit_pairs, size) for num, size in zip(pairs, sizes, strict=True)]
    firsts = [0, *accumulate(group.num_rows for group in groups)]
    for low, high in _within(costs, 1):
        start, stop = firsts[low], firsts[high]
        num_parts = min(stop - start, math.ceil(costs[low])) if high - low == 1 else 1
        bounds = np.linspace(start, stop, max(1, num_parts) + 1).astype(int).tolist()
        for first, last in pairwise(bounds):
            if first < last:
                yield first, last, round(sum(pairs[low:high]) * (last - first) / (stop - start))


def _pairs_units(
    opened: OpenedInput, unit_pairs: int, held: Held | None
) -> tuple[pa.Table, np.ndarray, JobInput, tuple[Unit, ...]]:
    """The pairs in the units' order, whether each has its result already, and the units."""
    pairs = _with_settled_ranks(list_pairs(opened))
    unit_of_pair, is_kept = np.full(pairs.num_rows, -1), np.zeros(pairs.num_rows, bool)
    numbers: Iterator[int] = count()
    if held is not None:
        unit_of_pair, has_result = placed(pairs, held)
        is_kept = has_result & scorable(pairs) & held.is_open
        numbers = held.free_units()
    is_new = unit_of_pair < 0
    sizes = np.unique(pairs["query_index"].to_numpy()[is_new], return_counts=True)[1].tolist()
    new_units = [
        sum(sizes[low:high])
        for low, high in _within(sizes, _limit(unit_pairs, opened.corpus, DOCUMENT_COLUMNS))
    ]
    unit_of_pair[is_new] = np.repeat([*islice(numbers, len(new_units))], new_units)
    if held is not None:
        order = np.argsort(unit_of_pair, kind="stable")
        pairs, is_kept, unit_of_pair = pairs.take(order), is_kept[order], unit_of_pair[order]
    types = (pairs.schema.field(name).type for name in ("query_id", "doc_id"))
    units = tuple(_cut(pairs, unit_of_pair, is_kept))
    return pairs, is_kept, job_input(opened, *types), units


def _cut(pairs: pa.Table, unit_of_pair: np.ndarray, is_kept: np.ndarray) -> Iterator[PairsUnit]:
    """The units of pairs that stand in the units' order."""
    starts = np.flatnonzero(np.diff(unit_of_pair, prepend=-1)).tolist()
    codes = pairs["query_index"].to_numpy()
    for low, high in pairwise([*starts, pairs.num_rows]):
        content = to_ipc(pairs.slice(low, high - low))
        kept = np.packbits(is_kept[low:high]).tobytes() if is_kept[low:high].any() else b""
        num_queries = len(np.unique(codes[low:high]))
        yield PairsUnit(int(unit_of_pair[low]), content, num_queries, high - low, kept)


def _with_settled_ranks(pairs: pa.Table) -> pa.Table:
    queries, ranks, scores = (pairs[c].to_numpy() for c in ("query_index", "rank", "score"))
    settled = settled_ranks(queries, ranks, scores)
    num_tied = len(np.unique(queries[~np.isnan(ranks) & (ranks != settled)]))
    if num_tied:
        logger.info(
            f"first stage: the ranks of {num_tied:,} queries tie: their documents are ranked by "
            "score, and where that ties too as the input has them"
        )
    column = pairs.schema.get_field_index("rank")
    return pairs.set_column(column, "rank", pa.array(settled, from_pandas=True))


def _limit(unit_pairs: int, table: OpenedTable, columns: Sequence[str]) -> int:
    """Pairs of a unit whose rows of this table, which a worker holds, are of UNIT_BYTES at most."""
    return max(1, min(unit_pairs, UNIT_BYTES // table.row_bytes(columns)))


def _within(costs: Sequence[float], budget: float) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours that cost at most the budget together, or of one that costs more."""
    low, cost = 0, 0.0
    for high, own in enumerate(costs):
        if high > low and cost + own > budget:
            yield low, high
            low, cost = high, 0.0
        cost += own
    if low < len(costs):
        yield low, len(costs)
