"""The CPU stage of a document-major unit: each document once, with all the queries that name it."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from shardrank.actors.data import Content, parse_or_error
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.inputs.tables import Table
from shardrank.jobs.outputs.scores import PLACE_SCHEMA
from shardrank.jobs.run.attempts import Attempt
from shardrank.jobs.run.chunks import Chunks
from shardrank.jobs.run.engine import OpenedQuery, PreprocessorLike
from shardrank.jobs.units.documents import DocumentUnit
from shardrank.jobs.units.reading import (
    DOCUMENT_NAME,
    Row,
    query_parts,
    read_documents,
    read_queries,
)

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
                opened_pairs = _pairs(part, queries, opened, preprocessor, attempt)
                chunks.open.add(preprocessor.prepare_pairs(opened_pairs))
            queries.forget_beyond(QUERY_BYTES)
    yield chunks.last()


def _pairs(
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
