"""The CPU stage: one unit in, chunks of prepared pairs out, never more than a chunk in memory.

A unit of page images is far larger than a block should be, so it leaves this stage in pieces that
carry their unit's index; they meet again when the unit is written.
"""

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from actors.config import RerankerConfig
from actors.data import CandidateSet, Content
from jobs.chunks import Chunk
from jobs.document_preparing import prepare_documents
from jobs.documents import DocumentUnit
from jobs.engine import Engine, PreprocessorLike
from jobs.inputs import JobInput
from jobs.reading import DOCUMENT_NAME, QueryRow, pair_row, read_unit
from jobs.scores import row_schema
from jobs.units import Unit

SLICE_DOCUMENTS = 512
SLICE_MEDIA_DOCUMENTS = 16


@lru_cache(maxsize=1)
def _preprocessor(engine: Engine, config: RerankerConfig) -> PreprocessorLike:
    """One a worker process, which Ray uses again for the next unit."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    return engine.preprocessor(config)


def prepare_unit(
    batch: pa.Table, job_input: JobInput, engine: Engine, config: RerankerConfig
) -> Iterator[pa.Table]:
    """Ray Data's function: `batch` has one row, a pickled unit."""
    unit: Unit | DocumentUnit = pickle.loads(batch["unit"][0].as_py())
    preprocessor = _preprocessor(engine, config)
    if isinstance(unit, DocumentUnit):
        yield from prepare_documents(job_input, unit, preprocessor)
    else:
        yield from prepare_chunks(job_input, unit, preprocessor)


def prepare_chunks(
    job_input: JobInput, unit: Unit, preprocessor: PreprocessorLike
) -> Iterator[pa.Table]:
    """A query-major unit's chunks, as one-row tables (see Chunk.table)."""
    schema = row_schema(job_input)
    chunk = Chunk()
    index = 0
    for query in read_unit(job_input, unit):
        for rows, candidate_set in _slices(query):
            if chunk.is_full:
                yield chunk.table(schema, unit.index, index, is_last=False)
                chunk, index = Chunk(), index + 1
            chunk.rows += rows
            if candidate_set is not None:
                chunk.add(preprocessor.prepare(candidate_set))
    yield chunk.table(schema, unit.index, index, is_last=True)


def _slices(query: QueryRow) -> Iterator[tuple[list[dict[str, Any]], CandidateSet | None]]:
    """Rows in the candidates' order, and the set of those among them that can be scored."""
    good = [candidate for candidate in query.candidates if candidate.error is None]
    parsed = CandidateSet.parse(
        query.query,
        [each.document for each in good],
        query.instruction,
        query.options,
        DOCUMENT_NAME,
    )
    rows: list[dict[str, Any]] = []
    documents: list[Any] = []
    num_media = 0
    remaining = iter(parsed.documents)
    for doc_index, candidate in enumerate(query.candidates):
        rows.append(pair_row(query, doc_index, candidate))
        if candidate.error is None:
            documents.append(next(remaining))
            num_media += isinstance(documents[-1], Content) and documents[-1].has_media
        if len(rows) == SLICE_DOCUMENTS or num_media == SLICE_MEDIA_DOCUMENTS:
            yield rows, _subset(parsed, documents)
            rows, documents, num_media = [], [], 0
    if rows:
        yield rows, _subset(parsed, documents)


def _subset(parsed: CandidateSet, documents: list[Any]) -> CandidateSet | None:
    return replace(parsed, documents=tuple(documents)) if documents else None
