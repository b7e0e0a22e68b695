"""The CPU stage: one unit in, chunks of prepared pairs out, never more than a chunk in memory.

A unit of page images is far larger than a block should be, so it leaves this stage in pieces that
carry their unit's index; they meet again when the unit is written.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import pyarrow as pa

from actors.config import RerankerConfig
from actors.data import CandidateSet, Content, PairScore
from jobs.inputs import JobInput
from jobs.reading import Candidate, QueryRow, read_unit
from jobs.scores import row_schema
from jobs.units import Unit

CHUNK_BYTES = 32 << 20
CHUNK_PAIRS = 512
SLICE_DOCUMENTS = 512
SLICE_MEDIA_DOCUMENTS = 16


class PreparedPairs(Protocol):
    """What a preprocessor returns for a candidate set (actors' PreparedSet)."""

    @property
    def num_pairs(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


class PreprocessorLike(Protocol):
    def prepare(self, candidate_set: CandidateSet) -> Any: ...


class ScorerLike(Protocol):
    def score(self, sets: list[Any]) -> list[list[PairScore]]: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """The two halves of the reranker, as classes that each worker calls with the config."""

    preprocessor: Callable[[RerankerConfig], PreprocessorLike]
    scorer: Callable[[RerankerConfig], ScorerLike]


@lru_cache(maxsize=1)
def _preprocessor(engine: Engine, config: RerankerConfig) -> PreprocessorLike:
    """One a worker process, which Ray uses again for the next unit."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    return engine.preprocessor(config)


def prepare_unit(
    batch: pa.Table, job_input: JobInput, engine: Engine, config: RerankerConfig
) -> Iterator[pa.Table]:
    """Ray Data's function: `batch` has one row, a pickled unit."""
    unit: Unit = pickle.loads(batch["unit"][0].as_py())
    preprocessor = _preprocessor(engine, config)
    yield from prepare_chunks(job_input, unit, preprocessor)


def prepare_chunks(
    job_input: JobInput, unit: Unit, preprocessor: PreprocessorLike
) -> Iterator[pa.Table]:
    """One-row tables: unit, chunk, is_last, rows (Arrow IPC) and prepared (pickled sets)."""
    schema = row_schema(job_input)
    chunk = _Chunk()
    index = 0
    for query in read_unit(job_input, unit):
        for rows, candidate_set in _slices(query):
            if chunk.is_full:
                yield chunk.table(schema, unit.index, index, is_last=False)
                chunk, index = _Chunk(), index + 1
            chunk.rows += rows
            if candidate_set is not None:
                chunk.add(preprocessor.prepare(candidate_set))
    yield chunk.table(schema, unit.index, index, is_last=True)


@dataclass(slots=True)
class _Chunk:
    rows: list[dict[str, Any]] = field(default_factory=list)
    prepared: list[PreparedPairs] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, prepared: PreparedPairs) -> None:
        self.prepared.append(prepared)
        self.size_bytes += prepared.size_bytes

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= CHUNK_BYTES or len(self.rows) >= CHUNK_PAIRS

    def table(self, schema: pa.Schema, unit: int, index: int, is_last: bool) -> pa.Table:
        rows = pa.Table.from_pylist(self.rows, schema=schema)
        return pa.table(
            {
                "unit": pa.array([unit], pa.int32()),
                "chunk": pa.array([index], pa.int32()),
                "is_last": pa.array([is_last]),
                "rows": pa.array([_to_ipc(rows)], pa.large_binary()),
                "prepared": pa.array([pickle.dumps(self.prepared, 5)], pa.large_binary()),
            }
        )


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _slices(query: QueryRow) -> Iterator[tuple[list[dict[str, Any]], CandidateSet | None]]:
    """Rows in the candidates' order, and the set of those among them that can be scored."""
    good = [candidate for candidate in query.candidates if candidate.error is None]
    parsed = CandidateSet.parse(
        query.query, [each.document for each in good], query.instruction, query.options
    )
    rows: list[dict[str, Any]] = []
    documents: list[Any] = []
    num_media = 0
    remaining = iter(parsed.documents)
    for doc_index, candidate in enumerate(query.candidates):
        rows.append(_row(query, doc_index, candidate))
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


def _row(query: QueryRow, doc_index: int, candidate: Candidate) -> dict[str, Any]:
    return {
        "query_index": query.index,
        "doc_index": doc_index,
        "query_id": query.query_id,
        "doc_id": candidate.doc_id,
        "first_stage_rank": candidate.rank,
        "first_stage_score": candidate.score,
        "error_code": candidate.error.code if candidate.error else None,
        "error": str(candidate.error) if candidate.error else None,
    }
