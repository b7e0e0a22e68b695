"""What a scoring actor does: a chunk of prepared pairs in, its score rows out.

A chunk that raises, or that killed its actor twice, is scored pair by pair, so that what is to
blame is one row's error.
"""

import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import Embedding, PairScore
from shardrank.actors.errors import Crashed, TimedOut, Unexpected
from shardrank.jobs.errors import JobError
from shardrank.jobs.inputs.parquet import from_ipc
from shardrank.jobs.outputs.scores import Result, filled, names, with_figures, with_results
from shardrank.jobs.run.attempts import MAX_DEATHS, Attempt, AttemptLog, Attempts
from shardrank.jobs.run.engine import PackedEngine, PreparedPairs, ScorerLike, check_outline
from shardrank.jobs.run.pool import Pool, fair_threads

logger = logging.getLogger(__name__)

FIRST_TIMEOUT_FACTOR = 10
"""An actor's first forward may take so many times longer: what the warm-up did not compile is."""

_Ready = tuple[Sequence[PreparedPairs], Any]
"""A chunk's pairs, and what the scorer has planned of them, if it plans."""


class Score:
    """One actor: a scorer on its device. A chunk in, its score rows out."""

    def __init__(
        self,
        engine: PackedEngine,
        config: RerankerConfig,
        pool: Pool,
        log: Attempts | None = None,
        timeout_s: float | None = None,
        outline: str | None = None,
    ) -> None:
        self._log = log or AttemptLog()
        # A CPU is slow, and does not hang.
        self._timeout_s = timeout_s if pool.num_gpus else None
        self._first_timeout_s = self._timeout_s and FIRST_TIMEOUT_FACTOR * self._timeout_s
        if config.num_threads is None and not pool.num_gpus:
            config = replace(config, num_threads=fair_threads(pool))
        start = Attempt(self._log, ("start", _actor_id()))
        if start.num_deaths >= MAX_DEATHS:
            raise JobError(
                f"a scoring actor died {start.num_deaths} times while it loaded {config.model}: "
                "too little memory, or a library that crashes; Ray's worker logs say more"
            )
        check_outline(config, outline)
        self._scorer = engine.unpacked().scorer(config)
        self._kind: type[Result] = PairScore if config.embedding is None else Embedding
        start.end()
        self._turn = threading.Lock()
        self._is_suspect = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.concat_tables([self._score(batch, i) for i in range(batch.num_rows)])

    def _score(self, batch: pa.Table, index: int) -> pa.Table:
        """One chunk at a time; who comes meanwhile, in a thread of its own, gets its chunk ready.

        Not while one is scored that others died of. If getting ready kills the process, the chunk
        whose turn it is takes the blame, has died, and so is alone when it is tried again; this
        one's attempt begins with its turn, in which it is then found out.
        """
        ready = None
        if not self._turn.acquire(blocking=False):
            if not self._is_suspect:
                with suppress(Exception):  # it is raised again in its turn
                    ready = self._unpacked(batch, index)
            self._turn.acquire()
        try:
            return self._score_now(batch, index, ready)
        finally:
            self._turn.release()

    def _score_now(self, batch: pa.Table, index: int, ready: _Ready | None) -> pa.Table:
        work = "score", batch["unit"][index].as_py(), batch["chunk"][index].as_py()
        attempt = Attempt(self._log, work, self._timeout_s, self._first_timeout_s)
        self._is_suspect = attempt.num_deaths > 0
        started = time.monotonic()
        rows = from_ipc(batch["rows"][index].as_buffer())
        before = self._lookups()
        failure = attempt.hopeless()
        if failure is not None:  # of unpacking it, say: then nothing of it can be scored
            scores = [self._kind(error=failure)] * rows["error_code"].null_count
        else:
            prepared, planned = ready or self._unpacked(batch, index)
            scores = score_pairs(self._scorer, prepared, attempt, planned, self._kind)
        scored = with_results(rows, scores, self._kind)
        seconds = batch["seconds"][index].as_py() + time.monotonic() - started
        scored = with_figures(scored, [*_since(before, self._lookups()), seconds])
        chunk = {name: [batch[name][index].as_py()] * scored.num_rows for name in names("chunk")}
        attempt.end()
        self._first_timeout_s = None
        return filled(scored, chunk)

    def _unpacked(self, batch: pa.Table, index: int) -> _Ready:
        prepared = pickle.loads(batch["prepared"][index].as_buffer())
        plan = getattr(self._scorer, "planned", None)
        if plan is not None:
            with suppress(Exception):  # it is raised again where the sets are scored, and told
                return prepared, plan(prepared)
        return prepared, prepared

    def _lookups(self) -> list[int | None]:
        """The vision cache's hits and misses so far; of a scorer without one, nothing."""
        cache = getattr(self._scorer, "vision_cache", None)
        return [getattr(cache, "num_hits", None), getattr(cache, "num_misses", None)]


def score_pairs(
    scorer: ScorerLike,
    prepared: Sequence[PreparedPairs],
    attempt: Attempt,
    planned: Any = None,
    kind: type[Result] = PairScore,
) -> list[Result]:
    """All pairs' scores, in order. Together, unless that raised, or killed its process twice: then
    pair by pair, so that what is to blame is one row's error. planned: what the scorer has made of
    all of them already.

    If none is, its process was killed by something else. So they are scored together once more:
    alone a pair's last bits may differ, and the rows are to be those of an undisturbed run.
    """
    is_suspect = attempt.num_deaths >= MAX_DEATHS
    planned = list(prepared) if planned is None else planned
    if not is_suspect and (scores := _score_together(scorer, planned, attempt)) is not None:
        return scores
    pairs = [each.only(index) for each in prepared for index in range(each.num_pairs)]
    alone = [_score_one(scorer, pair, attempt, n, kind) for n, pair in enumerate(pairs)]
    is_innocent = not any(
        isinstance(score.error, Crashed | TimedOut | Unexpected) for score in alone
    )
    if is_suspect and is_innocent and attempt.failure("together") is None:
        return _score_together(scorer, planned, attempt) or alone
    return alone


def _score_together(scorer: ScorerLike, planned: Any, attempt: Attempt) -> list[Result] | None:
    """None where it raised."""
    try:
        with attempt.step("together"):
            scores = scorer.score(planned, attempt.progress)
        return [score for each in scores for score in each]
    except Exception as error:
        _die_with_device(error)
        logger.warning("scoring pair by pair what failed together: %r", error)
        return None


def _score_one(
    scorer: ScorerLike, pair: PreparedPairs, attempt: Attempt, number: int, kind: type[Result]
) -> Result:
    failure = attempt.failure("pair", number)
    if failure is not None:
        return kind(error=failure)
    try:
        with attempt.step("pair", number):
            ((score,),) = scorer.score([pair], attempt.progress)
            return score
    except Exception as error:
        _die_with_device(error)
        return kind(error=Unexpected.of(error, "scoring"))


def _die_with_device(error: Exception) -> None:
    """After an error of the device itself nothing works in this process: a new one is needed, and
    learns from the log that this one died.
    """
    torch = sys.modules.get("torch")
    lost = getattr(torch, "AcceleratorError", None)
    if lost is not None and isinstance(error, lost):
        logger.error("the device failed: %r", error)
        os._exit(1)


def _actor_id() -> str:
    """The same after a restart."""
    return ray.get_runtime_context().get_actor_id() or "" if ray.is_initialized() else ""


def _since(before: list[int | None], now: list[int | None]) -> list[int | None]:
    return [
        None if then is None or later is None else later - then
        for then, later in zip(before, now, strict=True)
    ]
