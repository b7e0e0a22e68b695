"""The CPU stage of a document-major unit: each document once, with all the queries that name it."""

from collections.abc import Iterator

import pyarrow as pa

from actors.data import Content, parse_or_error
from jobs.chunks import Chunk
from jobs.documents import DocumentUnit
from jobs.engine import OpenedQuery, PreprocessorLike
from jobs.inputs import JobInput
from jobs.reading import DOCUMENT_NAME, Row, query_parts, read_documents, read_queries
from jobs.scores import PLACE_SCHEMA
from jobs.tables import Table

DOCUMENT_PAIRS = 512
"""Pairs of one document that ride together: one chunk, so one actor, which encodes it once."""
QUERY_BYTES = 256 << 20


def prepare_documents(
    job_input: JobInput, unit: DocumentUnit, preprocessor: PreprocessorLike
) -> Iterator[pa.Table]:
    """Chunks of whole documents; of a document with more than DOCUMENT_PAIRS pairs, of a part."""
    pairs = unit.pairs()
    queries = _Queries(job_input.queries, pairs, preprocessor)
    chunk, index = Chunk(), 0
    for document, rows in read_documents(job_input.corpus, pairs):
        content = parse_or_error(Content.parse, document, DOCUMENT_NAME)
        opened = preprocessor.open_document(content, DOCUMENT_NAME)
        for low in range(0, len(rows), DOCUMENT_PAIRS):
            if chunk.is_full:
                yield chunk.table(PLACE_SCHEMA, unit.index, index, is_last=False)
                chunk, index = Chunk(), index + 1
            part = rows[low : low + DOCUMENT_PAIRS]
            chunk.rows += [{"place": row["place"]} for row in part]
            chunk.add(preprocessor.prepare_pairs((queries.open(row), opened) for row in part))
            queries.forget_beyond(QUERY_BYTES)
    yield chunk.table(PLACE_SCHEMA, unit.index, index, is_last=True)


class _Queries:
    """A unit's queries, each opened once while what is decoded of all of them is small enough."""

    def __init__(self, table: Table, pairs: pa.Table, preprocessor: PreprocessorLike) -> None:
        self._rows = read_queries(table, pairs)
        self._preprocessor = preprocessor
        self._opened: dict[tuple[int, int], OpenedQuery] = {}
        self._with_media: list[OpenedQuery] = []

    def open(self, pair: Row) -> OpenedQuery:
        place = (pair["query_file"], pair["query_position"])
        if place not in self._opened:
            query, instruction, options = query_parts(self._rows[place], pair["instruction"])
            opened = self._preprocessor.open_query(query, instruction, options)
            if isinstance(query, Content) and query.has_media:
                self._with_media.append(opened)
            self._opened[place] = opened
        return self._opened[place]

    def forget_beyond(self, size_bytes: int) -> None:
        if sum(query.size_bytes for query in self._with_media) > size_bytes:
            self._opened.clear()
            self._with_media.clear()
