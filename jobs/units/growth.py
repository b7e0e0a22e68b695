"""What an output already has of an input that grew: its units stay, and new pairs come to them.

A query stays in the unit that it was in, with its new documents; new queries make new units. Works
on ids alone, and knows nothing of where scores are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.joins import id_codes
from shardrank.jobs.inputs.paths import plain_type


@dataclass(frozen=True, slots=True)
class Held:
    """What the units hold. Of pairs `table` has unit, query_id, doc_id and is_scored, of candidate
    sets unit, file (its place in the job's list), start, stop and num_pairs.

    is_open: whether new pairs are still being added, so that what is_scored says is made use of.
    """

    table: pa.Table
    is_open: bool

    def free_units(self) -> Iterator[int]:
        """The numbers that new units get: first those between, of units that were never written."""
        taken = set(self.table["unit"].to_pylist())
        yield from (number for number in range(max(taken, default=-1) + 1) if number not in taken)
        yield from iter(range(max(taken, default=-1) + 1, 1 << 31))


def placed(pairs: pa.Table, held: Held) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the unit that each pair's query is in, -1 for a new query; (N,) whether the pair has a
    score, or an error of its content, already: the first of equal pairs.

    Raises UsageError that names a pair which the input no longer has.
    """
    _check_types(pairs, held.table)
    keys, kept_keys = _pair_keys(pairs, held.table)
    has_ids = pc.and_(held.table["query_id"].is_valid(), held.table["doc_id"].is_valid())
    gone = ~np.isin(kept_keys, keys) & has_ids.to_numpy()
    if gone.any():
        row = held.table.slice(int(np.flatnonzero(gone)[0]), 1).to_pylist()[0]
        raise UsageError(
            f"the input no longer has the pair of query_id {row['query_id']!r} and "
            f"doc_id {row['doc_id']!r}, which has a row already ({int(gone.sum()):,} such pairs "
            "are gone): only what came to an input can be added to an output"
        )
    is_scored = held.table["is_scored"].to_numpy(zero_copy_only=False)
    is_first = np.zeros(len(keys), bool)
    is_first[np.unique(keys, return_index=True)[1]] = True
    has_result = np.isin(keys, kept_keys[is_scored]) & is_first
    return _units_of(pairs["query_id"], held.table), has_result


def _check_types(pairs: pa.Table, held: pa.Table) -> None:
    """Raises UsageError for ids of another type: none of them would be one that has a row."""
    for name in ("query_id", "doc_id"):
        before, now = (plain_type(each.schema.field(name).type) for each in (held, pairs))
        if before not in (now, pa.null()):
            raise UsageError(
                f"{name} was {before} and is now {now}: only what came to an input can be added "
                "to an output"
            )


def _pair_keys(pairs: pa.Table, held: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """int64 of each table's pairs, equal where both ids are."""
    codes = []
    for name in ("query_id", "doc_id"):
        chunks = [*pairs[name].chunks, *held[name].cast(pairs.schema.field(name).type).chunks]
        both = pa.chunked_array(chunks, pairs.schema.field(name).type)
        codes.append(id_codes(both).astype(np.int64))
    keys = codes[0] * (int(codes[1].max(initial=0)) + 1) + codes[1]
    return keys[: pairs.num_rows], keys[pairs.num_rows :]


def _units_of(query_ids: pa.ChunkedArray, held: pa.Table) -> np.ndarray:
    known = held["query_id"].cast(query_ids.type).combine_chunks()
    rows = pc.index_in(query_ids, value_set=known).fill_null(-1)
    rows = rows.combine_chunks().to_numpy(zero_copy_only=False)
    units = np.append(held["unit"].to_numpy(), -1)
    return units[rows]  # the last is of a query that is in none


def gaps(num_rows: Sequence[int], held: Held) -> Iterator[tuple[int, int, int]]:
    """(file, start, stop) of candidate sets that no unit holds, where `num_rows` are the files'.

    Raises UsageError where a unit's rows are no longer there.
    """
    table = held.table.sort_by([("file", "ascending"), ("start", "ascending")])
    ends = [0] * len(num_rows)
    for row in table.to_pylist():
        file, start, stop = row["file"], row["start"], row["stop"]
        if file >= len(num_rows) or stop > num_rows[file]:
            raise UsageError("the input has lost candidate sets that have rows already")
        if ends[file] < start:
            yield file, ends[file], start
        ends[file] = stop
    for file, (end, num) in enumerate(zip(ends, num_rows, strict=True)):
        if end < num:
            yield file, end, num
