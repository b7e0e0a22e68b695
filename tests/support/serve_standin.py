"""A stand-in for a reranker behind the queue: what it prepares and scores waits for its gates.

A document's text is a name and a number of tokens, as "a 20"; its score follows from the name. So
what the queue expects by a text's length is far too little; `padded` texts are as long as they say.
"""

import asyncio
import itertools
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import numpy as np

from shardrank.actors.config import OFFICIAL_OPTIONS
from shardrank.actors.data import CandidateSet, Content, PairScore
from shardrank.actors.errors import InvalidContent, RerankError
from shardrank.actors.prepared import PreparedPair, PreparedSet
from shardrank.actors.sides import OpenQuery, OpenSide
from shardrank.serve.queue.batching import BatchQueue

_LONG = 60.0


class Gate:
    """Open, until it is closed; then it lets through as many as it is told to."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: float = float("inf")

    def close(self) -> None:
        self.let(0, more=False)

    def open(self) -> None:
        self.let(float("inf"))

    def let(self, number: float, more: bool = True) -> None:
        with self._changed:
            self._left = number + (self._left if more else 0)
            self._changed.notify_all()

    def enter(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._left > 0, _LONG)
            self._left -= 1


class StandIn:
    """batches: the names in each; prepared: names in the order of their preparing."""

    def __init__(self, max_batch_tokens: int = 100) -> None:
        self.preprocessor = self.scorer = self
        self.max_batch_tokens = max_batch_tokens
        self.scoring, self.preparing, self.media = Gate(), Gate(), Gate()
        self.prepared: list[str] = []
        self.batches: list[list[str]] = []
        self.batch_tokens: list[int] = []
        self.failing: dict[str, BaseException] = {}
        self.after_batch: Callable[[int], None] = lambda num_tokens: None
        self._names: dict[int, str] = {}
        self._ids = itertools.count(1)

    def open_query(
        self, query: Any, instruction: Any, options: Any, permit: Any, role: Any
    ) -> OpenQuery:
        return OpenQuery(OpenSide(query, "query"), "", OFFICIAL_OPTIONS, OFFICIAL_OPTIONS)

    def open_document(self, document: Content | RerankError, name: str, permit: Any) -> Any:
        return document

    def prepare_pairs(self, pairs: Iterable[tuple[OpenQuery, Any]]) -> PreparedSet:
        return PreparedSet(tuple(self._pair(document) for _, document in pairs), ())

    def _pair(self, document: Content | RerankError) -> PreparedPair | RerankError:
        if isinstance(document, RerankError):
            return document
        name, size = document.texts[0].split()
        (self.media if document.images else self.preparing).enter()
        self.prepared.append(name)
        if f"prepare {name}" in self.failing:
            raise self.failing[f"prepare {name}"]
        ids = np.full(int(size), next(self._ids), dtype=np.int32)
        self._names[int(ids[0])] = name
        return PreparedPair(ids, np.tile(np.arange(len(ids)), (3, 1)), np.full(len(ids), -1), False)

    def score(self, sets: Sequence[PreparedSet]) -> list[list[PairScore]]:
        pairs = [p for each in sets for p in each.pairs if isinstance(p, PreparedPair)]
        names = [self._names[int(pair.input_ids[0])] for pair in pairs]
        self.batches.append(names)
        self.batch_tokens.append(sum(pair.num_tokens for pair in pairs))
        self.scoring.enter()
        self.after_batch(self.batch_tokens[-1])
        for name in names:
            if name in self.failing:
                raise self.failing[name]
        found = [[self._score(pair) for pair in each.pairs] for each in sets]
        return found[1:] if "lost" in names else found

    def _score(self, pair: PreparedPair | RerankError) -> PairScore:
        if isinstance(pair, RerankError):
            return PairScore(error=pair)
        return score_of(self._names[int(pair.input_ids[0])], pair.num_tokens)


def score_of(name: str, num_tokens: int) -> PairScore:
    score = zlib.crc32(name.encode()) / 2**32
    return PairScore(score=score, logit=score, num_tokens=num_tokens)


def texts(*documents: str) -> CandidateSet:
    """Of documents as "a 20"; "error" is one that could not be parsed."""
    return CandidateSet(
        Content(("query",)),
        tuple(
            InvalidContent("no document") if each == "error" else Content((each,))
            for each in documents
        ),
    )


def padded(*documents: str) -> CandidateSet:
    return texts(*(each.ljust(int(3.5 * int(each.split()[1]))) for each in documents))


def media(*documents: str) -> CandidateSet:
    return CandidateSet(
        Content(("query",)), tuple(Content((each,), images=(b"page",)) for each in documents)
    )


def expected(*sets: CandidateSet) -> list[list[PairScore]]:
    return [
        [
            PairScore(error=document)
            if isinstance(document, RerankError)
            else score_of(document.texts[0].split()[0], int(document.texts[0].split()[1]))
            for document in each.documents
        ]
        for each in sets
    ]


def with_queue(reranker: Any, use: Callable[[BatchQueue], Awaitable[Any]], **settings: Any) -> Any:
    """Starts a queue, uses it, and stops it, none of which may hang."""

    async def main() -> Any:
        queue = BatchQueue(reranker, **settings)
        await queue.start()
        try:
            return await asyncio.wait_for(use(queue), _LONG)
        finally:
            if isinstance(reranker, StandIn):
                for gate in (reranker.scoring, reranker.preparing, reranker.media):
                    gate.open()
            await queue.stop(0)

    return asyncio.run(main())


async def until(is_so: Callable[[], Any]) -> None:
    end = time.monotonic() + _LONG
    while not is_so():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
