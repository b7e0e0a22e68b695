"""The CPU stage: one unit in, chunks of prepared pairs out, never more than a chunk in memory.

A unit of page images is far larger than a block should be, so it leaves this stage in pieces that
carry their unit's index; they meet again when the unit is written.
"""

import logging
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import Content, parse_or_error
from shardrank.actors.errors import Failure, RerankError, TimedOut
from shardrank.jobs.errors import JobError, UnreadableInput
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.inputs.parquet import to_ipc
from shardrank.jobs.inputs.tables import Table
from shardrank.jobs.outputs.scores import PLACE_SCHEMA, row_schema
from shardrank.jobs.run.attempts import MAX_DEATHS, Attempt, Attempts
from shardrank.jobs.run.engine import (
    OpenedQuery,
    PackedEngine,
    PreparedPairs,
    PreprocessorLike,
    check_outline,
)
from shardrank.jobs.storage import StorageError
from shardrank.jobs.units.documents import DocumentUnit
from shardrank.jobs.units.plan import SetsUnit, Unit, unit_name
from shardrank.jobs.units.reading import (
    DOCUMENT_NAME,
    QueryRow,
    Row,
    document_name,
    pair_row,
    query_parts,
    read_documents,
    read_queries,
    read_unit,
)

logger = logging.getLogger(__name__)

Document = Content | RerankError

LOAD_TIMEOUT_S = 600.0
"""Of importing torch and fetching a tokenizer, which is no pair's time."""
SLICE_DOCUMENTS = 512
SLICE_MEDIA_DOCUMENTS = 16


CHUNK_BYTES = 32 << 20
CHUNK_PAIRS = 512


@dataclass(slots=True)
class Chunk:
    rows: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[PreparedPairs] = field(default_factory=list)
    size_bytes: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, prepared: PreparedPairs) -> None:
        self.prepared.append(prepared)
        self.size_bytes += prepared.size_bytes

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= CHUNK_BYTES or len(self.rows) >= CHUNK_PAIRS

    def table(self, schema: pa.Schema, unit: int, index: int, is_last: bool) -> pa.Table:
        """One row: unit, chunk, is_last, rows (Arrow IPC), prepared (pickled sets) and the seconds
        since the chunk was begun.
        """
        rows = pa.Table.from_pylist(self.rows, schema=schema)
        return pa.table(
            {
                "unit": pa.array([unit], pa.int32()),
                "chunk": pa.array([index], pa.int32()),
                "is_last": pa.array([is_last]),
                "rows": pa.array([to_ipc(rows)], pa.large_binary()),
                "prepared": pa.array([pickle.dumps(self.prepared, 5)], pa.large_binary()),
                "seconds": pa.array([time.monotonic() - self.started]),
            }
        )


class Chunks:
    """Cuts a unit's rows into chunks, each of which leaves this process when it is cut.

    Where an attempt cut them before, there again: Ray has kept some of its chunks and takes the
    others from this one, while sizes go by what could be read of media, and may differ.
    """

    def __init__(self, schema: pa.Schema, unit: int, attempt: Attempt) -> None:
        self.open = Chunk()
        self._schema = schema
        self._unit = unit
        self._attempt = attempt
        self._known = attempt.cuts()
        self._index = 0

    def full(self) -> Iterator[pa.Table]:
        """The open chunk if this is where it ends; another one is open then."""
        known = self._known.get(self._index)
        if len(self.open.rows) < known if known is not None else not self.open.is_full:
            return
        if known is None:
            self._attempt.cut(self._index, len(self.open.rows))
        yield self._table(is_last=False)
        self.open, self._index = Chunk(), self._index + 1

    def last(self) -> pa.Table:
        return self._table(is_last=True)

    def _table(self, is_last: bool) -> pa.Table:
        return self.open.table(self._schema, self._unit, self._index, is_last)


@lru_cache(maxsize=1)
def _preprocessor(
    engine: PackedEngine, config: RerankerConfig, outline: str | None
) -> PreprocessorLike:
    """One a worker process, which Ray uses again for the next unit."""
    check_outline(config, outline)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    return engine.unpacked().preprocessor(config)


def _loaded(
    engine: PackedEngine, config: RerankerConfig, outline: str | None, attempt: Attempt
) -> PreprocessorLike:
    """Raises JobError where loading kills its process, or the model is another one here: no unit
    could be prepared.
    """
    failure = attempt.failure("load")
    if isinstance(failure, TimedOut):
        raise JobError(
            f"the preprocessor of {config.model} was not loaded within {LOAD_TIMEOUT_S:g} s, "
            f"{MAX_DEATHS} times: Ray's worker logs say where it hung"
        )
    if failure is not None:
        raise JobError(
            f"{failure} while it loaded the preprocessor of {config.model}: too little memory, or "
            "a library that crashes; Ray's worker logs say more"
        )
    with attempt.step("load"):
        return _preprocessor(engine, config, outline)


def prepare_unit(
    batch: pa.Table,
    job_input: JobInput,
    engine: PackedEngine,
    config: RerankerConfig,
    log: Attempts,
    timeout_s: float,
    outline: str | None = None,
) -> Iterator[pa.Table]:
    """Ray Data's function: `batch` has one row, a pickled unit. One that cannot be read yields what
    came before that, and is in the log.
    """
    unit: Unit | DocumentUnit = pickle.loads(batch["unit"][0].as_py())
    attempt = Attempt(log, ("prepare", unit.index), timeout_s, LOAD_TIMEOUT_S)
    preprocessor = _loaded(engine, config, outline, attempt)
    if (videos := getattr(preprocessor, "videos", None)) is not None:
        videos.lost = log  # the job's own, where this process has worked for another one
    attempt.progress()
    try:
        if isinstance(unit, DocumentUnit):
            yield from prepare_documents(job_input, unit, preprocessor, attempt)
        else:
            yield from prepare_chunks(job_input, unit, preprocessor, attempt)
    except (UnreadableInput, StorageError, Failure) as error:
        log.fail(unit.index, f"{_name(job_input, unit)}: {error}")
    except Exception as error:  # the outermost border: one unit is not worth the job
        logger.exception("unit %s", _name(job_input, unit))
        log.fail(unit.index, f"{_name(job_input, unit)}: {type(error).__name__}: {error}")
    attempt.end()


def _name(job_input: JobInput, unit: Unit | DocumentUnit) -> str:
    if isinstance(unit, SetsUnit):
        file = job_input.queries.files[unit.file].location
        return f"{unit_name(unit)} ({file}, rows {unit.start} to {unit.stop - 1})"
    return f"{unit_name(unit)} ({unit.num_pairs} pairs)"


def prepare_chunks(
    job_input: JobInput,
    unit: Unit,
    preprocessor: PreprocessorLike,
    attempt: Attempt | None = None,
) -> Iterator[pa.Table]:
    """A query-major unit's chunks, as one-row tables (see Chunk.table)."""
    attempt = attempt or Attempt.unwatched()
    chunks = Chunks(row_schema(job_input), unit.index, attempt)
    name = document_name(job_input)
    for query in read_unit(job_input, unit, attempt.reads):
        opened = None
        for rows, documents in _slices(query, name):
            yield from chunks.full()
            chunks.open.rows += rows
            if documents:
                opened = opened or _open_query(query, preprocessor, attempt)
                with attempt.step("slice", query.index, rows[0]["doc_index"]):
                    pairs = _pairs(query.index, opened, documents, name, preprocessor, attempt)
                    chunks.open.add(preprocessor.prepare_pairs(pairs))
                attempt.progress(len(documents))
    yield chunks.last()


def _slices(query: QueryRow, name: str) -> Iterator[tuple[list[Row], list[tuple[int, Document]]]]:
    """Rows in the candidates' order, and those among their documents that can be scored, each with
    its place in the query.
    """
    rows: list[Row] = []
    documents: list[tuple[int, Document]] = []
    num_media = 0
    for doc_index, candidate in enumerate(query.candidates):
        rows.append(pair_row(query, doc_index, candidate))
        if candidate.error is None:
            document = parse_or_error(Content.parse, candidate.document, name)
            documents.append((doc_index, document))
            num_media += isinstance(document, Content) and document.has_media
        if len(rows) == SLICE_DOCUMENTS or num_media == SLICE_MEDIA_DOCUMENTS:
            yield rows, documents
            rows, documents, num_media = [], [], 0
    if rows:
        yield rows, documents


def _open_query(query: QueryRow, preprocessor: PreprocessorLike, attempt: Attempt) -> OpenedQuery:
    step = "query", query.index
    content = attempt.failure(*step) or parse_or_error(Content.parse_query, query.query, "query")
    watch = partial(attempt.step, *step)
    return preprocessor.open_query(content, query.instruction, query.options, watch)


def _pairs(
    query_index: int,
    query: OpenedQuery,
    documents: Sequence[tuple[int, Document]],
    name: str,
    preprocessor: PreprocessorLike,
    attempt: Attempt,
) -> Iterator[tuple[OpenedQuery, Any]]:
    """A slice's pairs, each a step of the attempt until the next one is asked for."""
    for doc_index, document in documents:
        step = "pair", query_index, doc_index
        opened = preprocessor.open_document(attempt.failure(*step) or document, name)
        with attempt.step(*step):
            yield query, opened


DOCUMENT_PAIRS = 512
"""Pairs of one document that ride together: one chunk, so one actor, which encodes it once."""
QUERY_BYTES = 256 << 20


def prepare_documents(
    job_input: JobInput,
    unit: DocumentUnit,
    preprocessor: PreprocessorLike,
    attempt: Attempt | None = None,
) -> Iterator[pa.Table]:
    """Chunks of whole documents; of a document with more than DOCUMENT_PAIRS pairs, of a part."""
    attempt = attempt or Attempt.unwatched()
    pairs = unit.pairs()
    queries = _Queries(job_input.queries, pairs, preprocessor, attempt)
    chunks = Chunks(PLACE_SCHEMA, unit.index, attempt)
    for document, rows in attempt.reads(read_documents(job_input.corpus, pairs), "documents"):
        step = "document", rows[0]["place"]
        content = attempt.failure(*step) or parse_or_error(Content.parse, document, DOCUMENT_NAME)
        opened = preprocessor.open_document(content, DOCUMENT_NAME, partial(attempt.step, *step))
        for low in range(0, len(rows), DOCUMENT_PAIRS):
            yield from chunks.full()
            part = rows[low : low + DOCUMENT_PAIRS]
            chunks.open.rows += [{"place": row["place"]} for row in part]
            with attempt.step("slice", part[0]["place"]):
                opened_pairs = _document_pairs(part, queries, opened, preprocessor, attempt)
                chunks.open.add(preprocessor.prepare_pairs(opened_pairs))
            attempt.progress(len(part))
            queries.forget_beyond(QUERY_BYTES)
    yield chunks.last()


def _document_pairs(
    rows: Sequence[Row],
    queries: "_Queries",
    document: Any,
    preprocessor: PreprocessorLike,
    attempt: Attempt,
) -> Iterator[tuple[OpenedQuery, Any]]:
    """Each pair is a step of the attempt until the next one is asked for."""
    for row in rows:
        step = "pair", row["place"]
        failure = attempt.failure(*step)
        with attempt.step(*step):
            yield (
                queries.open(row),
                preprocessor.open_document(failure, DOCUMENT_NAME) if failure else document,
            )


class _Queries:
    """A unit's queries, each opened once while what is decoded of all of them is small enough."""

    def __init__(
        self, table: Table, pairs: pa.Table, preprocessor: PreprocessorLike, attempt: Attempt
    ) -> None:
        self._rows = read_queries(table, pairs, reads=attempt.reads)
        self._preprocessor = preprocessor
        self._attempt = attempt
        self._opened: dict[tuple[int, int], OpenedQuery] = {}
        self._with_media: list[OpenedQuery] = []

    def open(self, pair: Row) -> OpenedQuery:
        place = (pair["query_file"], pair["query_position"])
        if place not in self._opened:
            query, instruction, options = query_parts(self._rows[place], pair["instruction"])
            step = "query", *place
            watch = partial(self._attempt.step, *step)
            query = self._attempt.failure(*step) or query
            opened = self._preprocessor.open_query(query, instruction, options, watch)
            if isinstance(query, Content) and query.has_media:
                self._with_media.append(opened)
            self._opened[place] = opened
        return self._opened[place]

    def forget_beyond(self, size_bytes: int) -> None:
        if sum(query.size_bytes for query in self._with_media) > size_bytes:
            self._opened.clear()
            self._with_media.clear()
