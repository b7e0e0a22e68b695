"""An engine without a model, whose cost is known: what remains is the job's own.

A score is a checksum of the two texts; scoring sleeps a fixed time a pair, as a device would take.
"""

import os
import time
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.data import Content, PairScore
from shardrank.actors.errors import RerankError
from shardrank.jobs.run.engine import Engine, Progressed, Watch

_BYTES = 400
"""About what a prepared pair of 20 tokens takes."""


@dataclass(frozen=True, slots=True)
class Checksums:
    """Prepared pairs: a checksum each, padded to a plausible size."""

    values: tuple[tuple[int, bytes], ...]

    @property
    def num_pairs(self) -> int:
        return len(self.values)

    @property
    def size_bytes(self) -> int:
        return _BYTES * len(self.values)

    def only(self, index: int) -> "Checksums":
        return Checksums(self.values[index : index + 1])


@dataclass(frozen=True, slots=True)
class _Query:
    text: str
    size_bytes: int = 0


class StandInPreprocessor:
    def __init__(self, config: RerankerConfig) -> None:
        pass

    def open_query(
        self,
        query: Content | RerankError,
        instruction: str | None,
        options: QueryOptions,
        watch: Watch,
    ) -> _Query:
        return _Query(_text(query))

    def open_document(
        self, document: Content | RerankError, name: str, watch: Watch = nullcontext
    ) -> str:
        return _text(document)

    def prepare_pairs(self, pairs: Iterable[tuple[Any, Any]]) -> Checksums:
        return Checksums(
            tuple(
                (zlib.crc32(f"{query.text}\0{document}".encode()), bytes(_BYTES))
                for query, document in pairs
            )
        )


class StandInScorer:
    """log: gets a line for each call, when it began, when it ended, by whom, and how many pairs."""

    def __init__(self, pair_s: float, log: Path | None, config: RerankerConfig) -> None:
        self._pair_s = pair_s
        self._log = log

    def score(self, sets: list[Checksums], progressed: Progressed) -> list[list[PairScore]]:
        began = time.time()
        num_pairs = sum(each.num_pairs for each in sets)
        time.sleep(self._pair_s * num_pairs)
        scores = [[_score(value) for value, _ in each.values] for each in sets]
        if self._log is not None:
            with self._log.open("a") as stream:
                stream.write(f"{began} {time.time()} {os.getpid()} {num_pairs}\n")
        return scores


def make_engine(pair_s: float, log: Path | None = None) -> Engine:
    return Engine(StandInPreprocessor, partial(StandInScorer, pair_s, log))


def _text(content: Content | RerankError) -> str:
    return " ".join(content.texts) if isinstance(content, Content) else str(content)


def _score(value: int) -> PairScore:
    logit = value % 8_001 / 1_000 - 4
    return PairScore(score=0.5 + logit / 10, logit=logit, num_tokens=20)
