"""What a job leaves: one score file a unit, nested rankings and a TREC run on request.

A unit's score file is written last and at once: where it exists, the unit is done. What is
scored by document (by_document.py) is there only while a document-major job runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardrank.actors.errors import InvalidRow
from shardrank.jobs.errors import JobError, UnreadableInput, UsageError, VerificationError
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.outputs.scores import (
    names,
    nested,
    ranked,
    score_schema,
    with_kept,
    with_summary,
)
from shardrank.jobs.storage import (
    Location,
    comes_from_storage,
    delete_file,
    list_directory,
    read_bytes,
    remove_directory,
    remove_leftovers,
    write_atomically,
    write_stream,
)
from shardrank.jobs.units.documents import DocumentUnit
from shardrank.jobs.units.plan import PairsUnit, Plan, SetsUnit, Unit, unit_digest, unit_name
from shardrank.jobs.units.reading import expected_ids

MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
TREC_RUN = "run.trec"
SCORES, EMBEDDINGS = "scores", "embeddings"
RANKINGS = "rankings"
BY_DOCUMENT = "by_document"

ID_ERRORS = frozenset(error.code for error in InvalidRow.__subclasses__())
"""Found from ids alone, each time anew: a document that was not there may have come."""

_ABANDONED_S = 600.0
"""The manifest and the lease are a few kB, and written in far less."""


@dataclass(frozen=True, slots=True)
class Output:
    """folder: the name of that with a file a unit."""

    directory: Location
    with_rankings: bool = False
    folder: str = SCORES

    @property
    def results(self) -> Location:
        """The folder with a file a unit."""
        return self.directory.child(self.folder)

    def file(self, unit: Unit | DocumentUnit) -> Location:
        """Where the unit's rows are: a score file, a file of vectors, or a file by document."""
        is_by_document = isinstance(unit, DocumentUnit)
        folder = self.directory.child(BY_DOCUMENT) if is_by_document else self.results
        return folder.child(f"{unit_name(unit)}.parquet")

    def rankings_file(self, unit: Unit) -> Location:
        return self.directory.child(RANKINGS).child(f"{unit_name(unit)}.parquet")

    def remaining(self, units: Sequence[Unit]) -> list[Unit]:
        """The units without a score file, by one listing."""
        done = self.names(self.folder)
        return [unit for unit in units if self.file(unit).name not in done]

    def names(self, directory: str) -> set[str]:
        return {place.name for place, _ in list_directory(self.directory.child(directory))}

    def remove_leftovers(self) -> None:
        """Only for who holds the lease, which is itself renewed in the directory meanwhile."""
        for name in (self.folder, RANKINGS, BY_DOCUMENT):
            remove_leftovers(self.directory.child(name))
        remove_leftovers(self.directory, older_than_s=_ABANDONED_S)
        for name in self.names(RANKINGS) - self.names(self.folder):
            delete_file(self.directory.child(RANKINGS).child(name))  # killed before its scores

    def remove_by_document(self) -> None:
        """Only after all score files were verified: they hold the same rows."""
        remove_directory(self.directory.child(BY_DOCUMENT))


class UnitCollector:
    """Puts the chunks of a unit together again, in whatever order they come."""

    def __init__(self) -> None:
        self._chunks: dict[int, dict[int, pa.Table]] = {}
        self._num_chunks: dict[int, int] = {}

    def add(self, scored: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """(unit index, all its rows) of each unit that `scored` completes."""
        units, chunks = scored["unit"].to_numpy(), scored["chunk"].to_numpy()
        for unit, chunk in sorted(set(zip(units.tolist(), chunks.tolist(), strict=True))):
            rows = scored.filter(pa.array((units == unit) & (chunks == chunk)))
            self._chunks.setdefault(unit, {})[chunk] = rows
            if rows["is_last"][0].as_py():
                self._num_chunks[unit] = chunk + 1
            if len(self._chunks[unit]) == self._num_chunks.get(unit):
                del self._num_chunks[unit]
                parts = self._chunks.pop(unit)
                yield unit, pa.concat_tables(parts.values()).drop_columns(names("chunk"))


def write_unit(output: Output, job_input: JobInput, unit: Unit, rows: pa.Table) -> None:
    """Rank a unit's rows, or order its vectors as the input has them, and commit them. Doing it
    twice gives the same files.
    """
    if unit.kept:
        earlier = read_scores(output.file(unit))
        rows = with_kept(rows, earlier, ID_ERRORS)
    is_ranked = job_input.vector is None
    rows = ranked(rows) if is_ranked else rows.sort_by([(n, "ascending") for n in _INDEX])
    schema = score_schema(job_input)
    place = [unit.file, unit.start, unit.stop] if isinstance(unit, SetsUnit) else None
    columns = rows.select(schema.names).cast(schema)
    scores = with_summary(columns, rows, unit=unit_digest(unit), place=place)
    if output.with_rankings:
        rankings = nested(scores, rows["query_index"].to_numpy())
        write_atomically(output.rankings_file(unit), _to_parquet(rankings))
    write_atomically(output.file(unit), _to_parquet(scores))


_INDEX = names("indexed")


def _to_parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_scores(location: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """Raises StorageError, and VerificationError only where the file itself is broken."""
    content = read_bytes(location)
    with whole(location), pq.ParquetFile(pa.BufferReader(content)) as file:
        names = file.schema_arrow.names
        one_id = next((name for name in _IDS if name in names and not names.count(_IDS[name])), "")
        wanted = [one_id if name == _IDS.get(one_id) else name for name in columns or names]
        rows = file.read([*dict.fromkeys(wanted)])
    return rows.append_column(_IDS[one_id], rows[one_id]) if one_id in wanted else rows


_IDS = {"query_id": "doc_id", "doc_id": "query_id"}
"""Embedded texts have one of them, which is both of a pair's: see jobs/inputs/joins.py."""


@contextmanager
def whole(place: Location) -> Iterator[None]:
    """A file that the job wrote is read. Raises VerificationError where it is broken, and what it
    was where its storage fails.
    """
    try:
        yield
    except (UnreadableInput, OSError, UnicodeError, pa.ArrowException) as error:
        cause = error.__cause__ if isinstance(error, UnreadableInput) else error
        if comes_from_storage(cause):
            raise
        raise VerificationError(
            f"{place} cannot be read as Parquet: {cause}; delete it and run the same command again"
        ) from error


def write_trec_run(output: Output, units: Sequence[Unit], tag: str = "shardrank") -> Location:
    """All scored pairs as one TREC run; failed pairs are left out.

    Raises JobError for an id that a TREC run cannot hold.
    """
    place = output.directory.child(TREC_RUN)
    columns = ["query_id", "doc_id", "rank", "logit"]
    tables = (read_scores(output.file(unit), columns) for unit in units)
    write_stream(place, ("".join(trec_lines(scores, tag)).encode() for scores in tables))
    return place


def check_trec_ids(plan: Plan) -> None:
    """Raises UsageError for an id of the input that a TREC run cannot hold. Reads ids alone."""
    for unit in plan.units:
        for each in _ids(plan, unit):
            if isinstance(each, str) and not is_trec_id(each):
                raise UsageError(f"--trec-run: {_NO_TREC_ID.format(each)}")


def _ids(plan: Plan, unit: Unit) -> Iterator[Any]:
    if isinstance(unit, PairsUnit):
        pairs = unit.pairs()
        for column in ("query_id", "doc_id"):
            yield from pairs[column].unique().to_pylist()
        return
    for query_id, doc_ids in expected_ids(plan.input, unit):
        yield from (query_id, *doc_ids)


def is_trec_id(text: str) -> bool:
    return len(text.split()) == 1


_NO_TREC_ID = "the id {!r} is empty or has a space, which TREC runs forbid"


def trec_lines(scores: pa.Table, tag: str) -> Iterator[str]:
    """Lines whose scores strictly decrease within a query, as trec_eval breaks ties by document id.

    The score is the logit; where it ties, it is lowered to the next float32 below the one before.
    """
    below = np.float32(np.inf)
    for row in scores.to_pylist():
        if row["rank"] is None:
            continue
        if row["rank"] == 1:
            below = np.float32(np.inf)
        below = min(np.float32(row["logit"]), np.nextafter(below, np.float32(-np.inf)))
        query_id, doc_id = _trec_id(row["query_id"]), _trec_id(row["doc_id"])
        yield f"{query_id} Q0 {doc_id} {row['rank']} {below:.9g} {tag}\n"


def _trec_id(value: str | int) -> str:
    text = str(value)
    if not is_trec_id(text):
        raise JobError(f"{TREC_RUN}: {_NO_TREC_ID.format(text)}")
    return text
