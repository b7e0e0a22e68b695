"""The slices of a job: each is read, scored, written and committed by itself, as one output file.

The same input and the same limits always give the same units, so that a second run of a command
finds its files again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs.errors import UsageError
from jobs.inputs import JobInput, OpenedInput, job_input
from jobs.joins import list_pairs
from jobs.parquet import Footer, leaf_path
from jobs.tables import DOCUMENT_COLUMNS

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
        return pa.ipc.open_stream(self.content).read_all()


Unit = SetsUnit | PairsUnit


def unit_name(unit: Unit) -> str:
    return f"part-{unit.index:06d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All units of a job, done or not, and what a worker needs to read one."""

    input: JobInput
    units: tuple[Unit, ...]

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(hashlib.sha256(unit.content).digest())
        return digest.hexdigest()


def plan_units(opened: OpenedInput, unit_pairs: int = DEFAULT_UNIT_PAIRS) -> Plan:
    """Raises UsageError if there is nothing to score."""
    if opened.form == "sets":
        plan = _plan_sets(opened, unit_pairs)
    else:
        plan = _plan_pairs(opened, unit_pairs)
    if not plan.units:
        raise UsageError(f"{plan.input.queries.name}: the input has no rows")
    return plan


def _plan_sets(opened: OpenedInput, unit_pairs: int) -> Plan:
    table = opened.queries
    columns = list(table.table.columns.values())
    candidates = table.table.columns["candidates"]
    units: list[Unit] = []
    for index, footer in enumerate(table.footers):
        assert footer is not None
        leaf = leaf_path(footer, candidates, "doc_id")
        for start, stop, num_pairs in _row_ranges(footer, columns, leaf, unit_pairs):
            units.append(SetsUnit(len(units), index, start, stop, num_pairs))
    schema = table.schema()
    assert schema is not None
    document = schema.field(candidates).type.value_type
    query_ids = schema.field(table.table.columns["query_id"]).type
    return Plan(job_input(opened, query_ids, document.field("doc_id").type), tuple(units))


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


def _plan_pairs(opened: OpenedInput, unit_pairs: int) -> Plan:
    pairs = list_pairs(opened)
    document_bytes = _document_bytes(opened, pairs)
    limit = max(1, min(unit_pairs, UNIT_BYTES // document_bytes))
    codes = pairs["query_index"].to_numpy()
    bounds = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), len(codes)).tolist()
    units = [
        _pairs_unit(index, pairs.slice(bounds[low], bounds[high] - bounds[low]), high - low)
        for index, (low, high) in enumerate(_query_ranges(bounds, limit))
    ]
    types = (pairs.schema.field("query_id").type, pairs.schema.field("doc_id").type)
    return Plan(job_input(opened, *types), tuple(units))


def _document_bytes(opened: OpenedInput, pairs: pa.Table) -> int:
    footers = [footer for footer in opened.corpus.footers if footer]
    num_rows = sum(footer.num_rows for footer in footers) or pairs.num_rows
    return opened.corpus.row_bytes(DOCUMENT_COLUMNS, num_rows)


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
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pairs.schema) as writer:
        writer.write_table(pairs.combine_chunks())
    return PairsUnit(index, sink.getvalue().to_pybytes(), num_queries, pairs.num_rows)
