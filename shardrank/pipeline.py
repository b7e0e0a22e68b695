"""Both stages in one object, for corpora that fit in memory: recall, then rerank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardrank.actors.embedder import Embedder
from shardrank.actors.reranker import Reranker
from shardrank.jobs.retrieve.search import search


@dataclass(frozen=True, slots=True)
class Hit:
    """One document of a query's result: its place in the corpus, the reranker's score in [0, 1],
    and the cosine that it was recalled by.
    """

    document: int
    score: float
    first_stage_score: float


class Pipeline:
    """An embedder that recalls, and a reranker that refines."""

    def __init__(self, embedder: Embedder, reranker: Reranker) -> None:
        self.embedder = embedder
        self.reranker = reranker

    def search(
        self,
        queries: Sequence[Any],
        corpus: Sequence[Any],
        top_k: int = 100,
        *,
        vectors: np.ndarray | None = None,
        instruction: str | None = None,
        query_instruction: str | None = None,
    ) -> list[list[Hit]]:
        """Each query's best top_k documents of the first stage, in the reranker's order.

        queries, corpus: contents as Embedder.embed and Reranker.score have them. vectors: the
        corpus's, (N, D) float32, if they are there already. instruction: the reranker's;
        query_instruction: the embedder's. Raises the first RerankError, and ValueError for vectors
        that are not one of each document.
        """
        if vectors is None:
            vectors = self.embedder.embed(corpus)
        if len(vectors) != len(corpus):
            raise ValueError(f"vectors are {len(vectors)} and documents {len(corpus)}")
        asked = self.embedder.embed(queries, "query", query_instruction)
        scores, documents = search(asked, vectors, min(top_k, len(vectors)))
        return [
            self._reranked(query, corpus, found, cosines, instruction)
            for query, found, cosines in zip(queries, documents, scores, strict=True)
        ]

    def _reranked(
        self,
        query: Any,
        corpus: Sequence[Any],
        documents: np.ndarray,
        cosines: np.ndarray,
        instruction: str | None,
    ) -> list[Hit]:
        numbers = documents.tolist()
        scores = self.reranker.score(query, [corpus[number] for number in numbers], instruction)
        hits = [Hit(*each) for each in zip(numbers, scores, cosines.tolist(), strict=True)]
        return sorted(hits, key=lambda hit: -hit.score)
