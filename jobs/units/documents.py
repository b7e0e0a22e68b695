"""Document-major planning: each document of the corpus with all the pairs that name it.

Works on the list of pairs alone. A pair's `place` is its row in that list, which is in query order:
by it a score finds its query again (outputs/by_document.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shardrank.jobs.inputs.joins import id_codes
from shardrank.jobs.inputs.parquet import from_ipc, to_ipc
from shardrank.jobs.inputs.tables import OpenedTable

BUCKET_PAIRS = 1 << 20
"""Pairs that one regrouping task holds, as small rows: tens of megabytes."""
SLACK = 2
"""A unit may be this much larger than asked for to end where a row group or a document ends."""

_COLUMNS = ["query_file", "query_position", "doc_file", "doc_position", "instruction"]


@dataclass(frozen=True, slots=True)
class DocumentUnit:
    """Neighbours in the corpus with their pairs: documents in order, a document's pairs by place.

    content: place, the query's and the document's file and position, and instruction, as Arrow IPC.
    """

    index: int
    content: bytes
    num_documents: int
    num_pairs: int

    def pairs(self) -> pa.Table:
        return from_ipc(self.content)

    def first_places(self) -> np.ndarray:
        """(num_documents,) the place of each document's first pair."""
        pairs = self.pairs()
        firsts = np.unique(_document_keys(pairs), return_index=True)[1]
        return pairs["place"].to_numpy()[firsts]


@dataclass(frozen=True, slots=True)
class DocumentPlan:
    """The document-major units, and how their rows become score files.

    unit_starts: the first place of each unit in query order, and the end.
    bucket_starts: the first unit in query order of each bucket, and the end. A bucket is what one
    task regroups, and one row group of every file by document.
    """

    units: tuple[DocumentUnit, ...]
    unit_starts: tuple[int, ...]
    bucket_starts: tuple[int, ...]

    @property
    def bucket_places(self) -> tuple[int, ...]:
        """The first place of each bucket, and the end."""
        return tuple(self.unit_starts[unit] for unit in self.bucket_starts)

    def units_with(self, wanted: Sequence[int]) -> tuple[DocumentUnit, ...]:
        """Those with a pair of at least one of the wanted units in query order."""
        is_wanted = np.zeros(len(self.unit_starts), bool)
        is_wanted[list(wanted)] = True
        if is_wanted[:-1].all():
            return self.units
        return tuple(
            unit
            for unit in self.units
            if is_wanted[
                np.searchsorted(self.unit_starts, unit.pairs()["place"].to_numpy(), "right") - 1
            ].any()
        )


def scorable(pairs: pa.Table) -> np.ndarray:
    """(N,) whether a pair's ids let it be scored: both known, and the first of its kind.

    reading.py gives the others their errors, whatever a document holds.
    """
    found = (pairs["query_file"].to_numpy() >= 0) & (pairs["doc_file"].to_numpy() >= 0)
    codes = id_codes(pairs["doc_id"]).astype(np.int64)
    num_codes = int(codes.max(initial=0)) + 1
    queries = pairs["query_index"].to_numpy().astype(np.int64)
    firsts = np.unique(queries * num_codes + codes, return_index=True)[1]
    is_first = np.zeros(pairs.num_rows, bool)
    is_first[firsts] = True
    return found & is_first


def num_shared(pairs: pa.Table, is_scorable: np.ndarray) -> tuple[int, int]:
    """(scorable pairs, distinct documents that they name)."""
    return int(is_scorable.sum()), len(np.unique(_document_keys(pairs)[is_scorable]))


def _document_keys(pairs: pa.Table) -> np.ndarray:
    """(N,) int64 that order documents as in the corpus and are equal for the same document."""
    return _keys(pairs["doc_file"].to_numpy(), pairs["doc_position"].to_numpy())


def _keys(file: np.ndarray | int, position: np.ndarray) -> np.ndarray:
    return (np.int64(1) << 40) * file + position  # a position is a row, or a byte below 1 TiB


def plan_documents(
    corpus: OpenedTable,
    pairs: pa.Table,
    is_scorable: np.ndarray,
    unit_pairs: int,
    unit_sizes: Sequence[int],
    bucket_pairs: int,
) -> DocumentPlan:
    """unit_sizes: the pairs of each unit in query order."""
    units = tuple(_document_units(corpus, pairs, is_scorable, unit_pairs))
    starts = tuple(np.cumsum([0, *unit_sizes]).tolist())
    return DocumentPlan(units, starts, bucket_starts(starts, bucket_pairs))


def _document_units(
    corpus: OpenedTable, pairs: pa.Table, is_scorable: np.ndarray, unit_pairs: int
) -> Iterator[DocumentUnit]:
    """Units of about unit_pairs pairs over the scorable pairs, each pair in one of them."""
    places = np.flatnonzero(is_scorable)
    keys = _document_keys(pairs)[places]
    order = np.argsort(keys, kind="stable")
    places, keys = places[order], keys[order]
    documents = np.append(np.flatnonzero(np.diff(keys, prepend=-1)), len(keys))
    groups = np.append(np.searchsorted(keys, _row_group_keys(corpus)), len(keys))
    chosen = pairs.select(_COLUMNS).take(pa.array(places)).append_column("place", pa.array(places))
    start = 0
    for index, stop in enumerate(unit_ends(np.unique(groups), documents, unit_pairs)):
        own = chosen.slice(start, stop - start)
        own = own.set_column(4, "instruction", own["instruction"].dictionary_encode())
        num_documents = len(np.unique(keys[start:stop]))
        yield DocumentUnit(index, to_ipc(own), num_documents, stop - start)
        start = stop


def _row_group_keys(corpus: OpenedTable) -> np.ndarray:
    """The key of each row group's first row; a file of lines is one group."""
    firsts = []
    for file, footer in enumerate(corpus.footers):
        sizes = [group.num_rows for group in footer.row_groups] if footer else [0]
        firsts.append(_keys(file, np.cumsum([0, *sizes[:-1]])))
    return np.concatenate(firsts)


def unit_ends(groups: np.ndarray, documents: np.ndarray, unit_pairs: int) -> Iterator[int]:
    """Where units end, given the sorted borders of row groups and of documents, with the end.

    A unit ends with a row group where one ends near the size asked for, else with a document:
    then its row group is read by both neighbours. A document with more pairs than SLACK units is
    cut: it is read and encoded once in each unit that has a piece of it.
    """
    start, stop = 0, int(documents[-1])
    while start < stop:
        target, high = start + unit_pairs, start + unit_pairs * SLACK
        start = min(
            _border(groups, start + max(1, unit_pairs // SLACK), target, high)
            or _border(documents, start + 1, target, high)
            or target,
            stop,
        )
        yield start


def _border(borders: np.ndarray, low: int, target: int, high: int) -> int | None:
    """The last border within low..target, or the first after it up to high; low is above 0."""
    after = int(np.searchsorted(borders, target, "right"))
    if after and borders[after - 1] >= low:
        return int(borders[after - 1])
    return int(borders[after]) if after < len(borders) and borders[after] <= high else None


def bucket_starts(unit_starts: Sequence[int], bucket_pairs: int) -> tuple[int, ...]:
    """The first unit of each bucket, and the end: as few whole units as have bucket_pairs pairs."""
    starts = [0]
    for unit, place in enumerate(unit_starts):
        if place - unit_starts[starts[-1]] >= bucket_pairs:
            starts.append(unit)
    last = len(unit_starts) - 1
    return tuple(starts) if starts[-1] == last else (*starts, last)
