"""The real preprocessor and a quick scorer, which die or hang of certain texts.

A text says who dies of it and how: `prepare:segfault`, `prepare:kill`, `prepare:hang`,
`prepare:raise`, `prepare:grow`, `score:kill`, `score:raise`, `score:hang`. As a query it is the
same.

`-m tests.faults.poison LOG SETS OUTPUT MODEL [ADDRESS]` is a job of its own with these, on a Ray of
its own or that one.
"""

import functools
import os
import re
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import PairScore
from shardrank.actors.errors import RerankError
from shardrank.actors.prepared import PreparedSet
from shardrank.actors.preprocessor import Preprocessor
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.rerank import JobOptions, rerank
from shardrank.jobs.run.engine import Engine

SCORE_POISON = {"kill": 1, "raise": 2, "hang": 3}


def hurt(how: str) -> None:
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "hang":
        time.sleep(3_600)
    elif how == "grow":
        grow(MAX_GROWTH)
    raise ZeroDivisionError("nobody foresaw this")


MAX_GROWTH = 8 << 30


def grow(num_bytes: int) -> None:
    """Until somebody ends it, as fast as a decompression bomb would."""
    held = []
    for _ in range(num_bytes >> 26):
        held.append(b"x" * (1 << 26))
        time.sleep(0.02)


class PoisonedPreprocessor(Preprocessor):
    def __init__(self, log: Path, config: RerankerConfig) -> None:
        super().__init__(config)
        self._log = log

    def _read(self, content: Any, *more: Any, **named: Any) -> Any:
        for text in content.texts:
            if match := re.search("prepare:([a-z]+)", text):
                note(self._log, f"read {match[0]}")
                hurt(match[1])
        return super()._read(content, *more, **named)

    def prepare_pairs(self, pairs: Any) -> PreparedSet:
        """Pairs whose text a scorer dies of have a position that says so."""
        marks = []

        def marked() -> Any:
            for query, document in pairs:
                text = " ".join(getattr(document._content, "texts", ()))
                match = re.search("score:([a-z]+)", text)
                marks.append(SCORE_POISON[match[1]] if match else 0)
                yield query, document

        prepared = super().prepare_pairs(marked())
        for mark, pair in zip(marks, prepared.pairs, strict=True):
            if not isinstance(pair, RerankError):
                pair.position_ids[0, 0] = mark
        return prepared


class PoisonedScorer:
    """A score is a checksum of the tokens; what is scored is noted, after it was."""

    def __init__(self, log: Path, config: RerankerConfig) -> None:
        self._log = log
        note(log, "start")
        if match := re.search("-that-(kill|grow)s$", config.model):
            hurt(match[1])

    def score(self, sets: list[PreparedSet], progressed: Any) -> list[list[PairScore]]:
        progressed(0)
        scores = [[self._score(pair) for pair in prepared.pairs] for prepared in sets]
        note(self._log, f"score {sum(map(len, scores))}")
        return scores

    def _score(self, pair: Any) -> PairScore:
        if isinstance(pair, RerankError):
            return PairScore(error=pair)
        if poison := pair.position_ids[0, 0]:
            hurt({number: how for how, number in SCORE_POISON.items()}[int(poison)])
        logit = zlib.crc32(np.ascontiguousarray(pair.input_ids).tobytes()) % 4_001 / 1_000 - 2
        return PairScore(score=0.5 + logit / 8, logit=logit, num_tokens=pair.num_tokens)


def engine(log: Path) -> Engine:
    return Engine(
        functools.partial(PoisonedPreprocessor, log), functools.partial(PoisonedScorer, log)
    )


def note(log: Path, what: str) -> None:
    with log.open("a") as stream:
        stream.write(f"{what}\n")


if __name__ == "__main__":
    from tests.faults import poison  # by this name the workers find it

    where, sets, output, model, *address = sys.argv[1:]
    job = JobOptions(
        output,
        InputOptions(sets),
        unit_pairs=40,
        pair_timeout_s=4.0 if address else 300.0,
        address=address[0] if address else None,
    )
    rerank(job, RerankerConfig(model=model, num_threads=1), poison.engine(Path(where)))
