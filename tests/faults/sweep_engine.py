"""A stand-in engine that takes its time and writes down what it does, so that a kill can be aimed
and what was done twice be counted. One slice is one query, or in document-major order one document;
it is one set and one chunk.
"""

import os
import time
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import PairScore
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.run.preparing import CHUNK_BYTES

PREPARE_S = 0.03
SCORE_S = 0.05
PAYLOAD = bytes(1_200_000)
"""So that a chunk is a block, and more than Ray keeps beside its owner: lost with its node."""
BUCKET_PAIRS = 320
"""So that even a small document-major job is regrouped by many tasks, of several files each."""


def make_engine(log: Path | None) -> Engine:
    """Without a log it does not take its time either."""
    return Engine(partial(SweepPreprocessor, log), partial(SweepScorer, log))


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair of texts; its tokens are not wanted."""

    query: str
    document: str


@dataclass(frozen=True, slots=True)
class SweepSet:
    """A set that fills its chunk; `payload` is what pixels are otherwise."""

    pairs: tuple[Pair, ...]
    payload: bytes
    size_bytes: int = CHUNK_BYTES

    @property
    def num_pairs(self) -> int:
        return len(self.pairs)

    def only(self, index: int) -> "SweepSet":
        return SweepSet((self.pairs[index],), self.payload)


class SweepPreprocessor:
    def __init__(self, log: Path | None, config: RerankerConfig) -> None:
        self._log = log

    def open_query(self, query: Any, instruction: Any, options: Any, watch: Any) -> Any:
        (text,) = query.texts
        return SimpleNamespace(text=text, size_bytes=0)

    def open_document(self, document: Any, name: str, watch: Any = nullcontext) -> str:
        (text,) = document.texts
        return text

    def prepare_pairs(self, pairs: Iterable[tuple[Any, str]]) -> SweepSet:
        prepared = []
        for query, document in pairs:
            pair = Pair(query.text, document)
            if not prepared:
                note(self._log, "prepare", pair)
                take(PREPARE_S, self._log)
            prepared.append(pair)
        return SweepSet(tuple(prepared), PAYLOAD)


class SweepScorer:
    def __init__(self, log: Path | None, config: RerankerConfig) -> None:
        self._log = log
        note(log, "start")

    def score(self, sets: list[SweepSet], progressed: Any = None) -> list[list[PairScore]]:
        scores = []
        for prepared in sets:
            note(self._log, "score", prepared.pairs[0])
            take(SCORE_S, self._log)
            scores.append([score_of(pair) for pair in prepared.pairs])
            note(self._log, "scored", prepared.pairs[0], len(prepared.pairs))
        return scores


def score_of(pair: Pair) -> PairScore:
    checksum = zlib.crc32(f"{pair.query} {pair.document}".encode())
    logit = checksum % 4_000_001 / 1_000_000 - 2
    return PairScore(score=0.5 + logit / 8, logit=logit, num_tokens=3)


def take(seconds: float, log: Path | None) -> None:
    if log is not None:
        time.sleep(seconds)


def note(log: Path | None, what: str, first: Pair | None = None, num_pairs: int = 0) -> None:
    """One line, written at once: seconds, process, what it does, and to the pairs after which."""
    if log is not None:
        about = (first.query, first.document, num_pairs) if first else ()
        line = "\t".join(map(str, (f"{time.time():.3f}", os.getpid(), what, *about)))
        with log.open("a") as stream:
            stream.write(line + "\n")
