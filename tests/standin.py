"""A stand-in for the reranker's two halves: scores from a checksum, errors from marked contents.

Its own module and built from plain values, so that any worker can unpickle what it prepares.
"""

import zlib
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from actors.data import CandidateSet, Content, PairScore
from actors.errors import ImageDecodeError, RerankError
from jobs.engine import Engine


def make_engine() -> Engine:
    return Engine(StandInPreprocessor, StandInScorer)


class StandInPreprocessor:
    def __init__(self, config: Any) -> None:
        self.config = config

    def prepare(self, candidate_set: CandidateSet) -> Any:
        return _prepared((candidate_set.query, each) for each in candidate_set.documents)

    def open_query(self, query: Any, instruction: Any, options: Any) -> Any:
        return SimpleNamespace(query=query, size_bytes=0)

    def open_document(self, document: Any, name: str) -> Any:
        return document

    def prepare_pairs(self, pairs: Iterable[tuple[Any, Any]]) -> Any:
        return _prepared((query.query, document) for query, document in pairs)


class StandInScorer:
    def __init__(self, config: Any) -> None:
        self.config = config

    def score(self, sets: list[Any]) -> list[list[PairScore]]:
        return [prepared.results for prepared in sets]


def _prepared(pairs: Iterable[tuple[Any, Any]]) -> Any:
    results = [_result(query, document) for query, document in pairs]
    return SimpleNamespace(results=results, num_pairs=len(results), size_bytes=len(results))


def _result(query: Content | RerankError, document: Content | RerankError) -> PairScore:
    for side in (query, document):
        if isinstance(side, RerankError):
            return PairScore(error=side)
    if b"broken" in document.images:
        return PairScore(error=ImageDecodeError("the image cannot be decoded"))
    checksum = zlib.crc32(repr((query.texts, document.texts)).encode())
    logit = checksum % 4_001 / 1_000 - 2
    return PairScore(score=0.5 + logit / 8, logit=logit, num_tokens=3)
