"""The one queue of all callers before one reranker: batches of tokens, whoever they are from.

Preparing runs in a few threads, scoring in one, both off the event loop. Who would have to wait too
long is refused before any work. Knows no HTTP.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from shardrank.actors.data import CandidateSet, PairScore
from shardrank.actors.embedder import Embedder
from shardrank.actors.prepared import PreparedSet
from shardrank.actors.reranker import Reranker
from shardrank.serve.errors import DeadlineExceeded, NotReady, TooManyRequests
from shardrank.serve.metrics import Metrics
from shardrank.serve.queue.queued import PIECES_A_BATCH, Piece, QueuedRequest, Slice

logger = logging.getLogger(__name__)

_HALVINGS = 30
_BATCHES_AHEAD_OF_REQUEST = 2
_BATCHES_AHEAD = 8
"""Prepared tokens that wait for the scorer, of one request and of all: pixels take 3 KB each. Over
the second, only who has none yet may have a slice prepared.
"""


Turns = OrderedDict[QueuedRequest, None]
"""Requests that wait for the same thing: the first one's turn is next."""
Batch = list[tuple[QueuedRequest, Piece]]
Run = Callable[[list[PreparedSet]], list[list[Any]]]
"""A scorer's `score`, or its `embed`."""


class BatchQueue:
    """Scores the candidate sets of many callers; belongs to one event loop.

    num_preparing: threads that decode and tokenise; one more takes text alone, which so never
    waits for others' media. max_queue_s, max_queue_pairs: see Admission.
    """

    def __init__(
        self,
        reranker: Reranker | Embedder,
        *,
        num_preparing: int = 2,
        max_queue_s: float = 5.0,
        max_queue_pairs: int = 20_000,
        observer: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        run: Run | None = None,
    ) -> None:
        self._reranker = reranker
        self._run = run or reranker.scorer.score
        self._budget = reranker.scorer.max_batch_tokens
        self._num_preparing = num_preparing
        self._clock = clock
        self._requests: dict[QueuedRequest, None] = {}
        self._to_prepare = Turns()
        self._to_score = Turns()
        self._num_ahead = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._is_open = False
        turn = self._budget // PIECES_A_BATCH
        self.admission = Admission(max_queue_s, max_queue_pairs, turn, observer)

    async def start(self) -> None:
        self._changed = asyncio.Event()
        self._scoring = ThreadPoolExecutor(1, "score")
        self._preparing = ThreadPoolExecutor(self._num_preparing + 1, "prepare")
        loops = [self._score_batches(), self._prepare_slices(takes_media=False)]
        loops += [self._prepare_slices(takes_media=True) for _ in range(self._num_preparing)]
        self._tasks = [asyncio.create_task(each) for each in loops]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        self._is_open = True

    async def stop(self, drain_s: float) -> None:
        """Takes no more, waits at most drain_s for those who are in, and fails the rest."""
        self._is_open = False
        try:
            if self._requests:
                await asyncio.wait([each.done for each in self._requests], timeout=drain_s)
        finally:
            self._fail_all(NotReady.of_server())
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            if tasks:
                self._scoring.shutdown(wait=False, cancel_futures=True)
                self._preparing.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def score(
        self, sets: Sequence[CandidateSet], *, timeout_s: float | None = None
    ) -> list[list[PairScore]]:
        """One list a set, one PairScore a document, in input order.

        Raises NotReady, TooManyRequests, DeadlineExceeded, or what the engine failed of. Whose
        task is cancelled has left the queue.
        """
        request = self.check_room(sets)
        if not request.num_pairs:
            return request.result()
        self._admit(request)
        try:
            await asyncio.wait([request.done], timeout=timeout_s)
        finally:
            self._remove(request)
        if not request.done.done():
            raise DeadlineExceeded(f"not scored within {timeout_s:g} s")
        return request.result()

    def check_any_room(self) -> None:
        """Raises what `score` would raise at once, were it for one short document."""
        self._check(num_pairs=1, num_tokens=0)

    def check_room(self, sets: Sequence[CandidateSet]) -> QueuedRequest:
        """Raises what `score` would raise at once, for callers with work to do before it: media
        need not be there yet.
        """
        request = QueuedRequest(sets, self._reranker.preprocessor, self._budget)
        self._check(request.num_pairs, request.num_tokens)
        return request

    def _check(self, num_pairs: int, num_tokens: int) -> None:
        if not self._is_open:
            raise NotReady.of_server()
        left = [request.num_tokens for request in self._requests]
        self.admission.check(left, num_pairs, num_tokens)

    def _admit(self, request: QueuedRequest) -> None:
        self._requests[request] = None
        self._to_prepare[request] = None
        self.admission.add(request.num_pairs, request.num_tokens)
        self._changed.set()

    def _remove(self, request: QueuedRequest) -> None:
        """Ended, in whatever way. What is being prepared or scored of it goes nowhere."""
        if request not in self._requests:
            return
        request.is_wanted = False
        del self._requests[request]
        self._to_prepare.pop(request, None)
        self._to_score.pop(request, None)
        self._num_ahead -= request.num_ahead
        self.admission.add(-request.num_pairs, -request.num_tokens)
        self._changed.set()

    def _end(self, request: QueuedRequest, error: BaseException | None = None) -> None:
        if request.is_wanted:
            request.error = error
            request.done.set_result(None)
            self._remove(request)

    def _fail_all(self, error: BaseException) -> None:
        for request in list(self._requests):
            self._end(request, error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """No loop ends by itself: nothing of what is in would ever come out."""
        if self._tasks:
            self._is_open = False
            error = None if task.cancelled() else task.exception()
            logger.critical("the queue has ended", exc_info=error)
            self._fail_all(error or NotReady.of_server())

    async def _prepare_slices(self, takes_media: bool) -> None:
        while True:
            request, part = await self._next_slice(takes_media)
            pieces, error = await _in_thread(self._preparing, partial(request.prepare, part))
            if error is not None:
                self._end(request, error)
            elif request.is_wanted:
                self._prepared(request, part, pieces)

    async def _next_slice(self, takes_media: bool) -> tuple[QueuedRequest, Slice]:
        while True:
            has_room = self._num_ahead < _BATCHES_AHEAD * self._budget
            max_ahead = _BATCHES_AHEAD_OF_REQUEST * self._budget if has_room else 1
            found = next_slice(self._to_prepare, max_ahead, takes_media)
            if found is not None:
                self._count_ahead(found[0], found[1].num_tokens)
                return found
            await self._change()

    def _prepared(self, request: QueuedRequest, part: Slice, pieces: list[Piece]) -> None:
        more = sum(piece.num_tokens for piece in pieces) - part.num_tokens
        request.num_tokens += more
        request.ready += pieces
        self._to_score.setdefault(request)
        self._count_ahead(request, more)
        self.admission.add(0, more)
        self._changed.set()

    def _count_ahead(self, request: QueuedRequest, num_tokens: int) -> None:
        request.num_ahead += num_tokens
        self._num_ahead += num_tokens

    async def _score_batches(self) -> None:
        while True:
            batch = next_batch(self._to_score, self._budget)
            if not batch:
                await self._change()
                continue
            for request, piece in batch:
                self._count_ahead(request, -piece.num_tokens)
            self._changed.set()
            try:
                await self._score(batch)
            except Exception as error:  # the border of this loop, which all callers live by
                logger.exception("a batch of %d pieces failed", len(batch))
                for request, _ in batch:
                    self._end(request, error)

    async def _score(self, batch: Batch) -> None:
        pieces = [piece for _, piece in batch]
        started = self._clock()
        call = partial(_results, self._run, pieces)
        scores, error = await _in_thread(self._scoring, call)
        seconds = self._clock() - started
        if error is not None:
            raise error
        num_tokens = sum(piece.num_tokens for piece in pieces)
        num_pairs = sum(piece.num_pairs for piece in pieces)
        self.admission.scored(num_pairs, num_tokens, num_tokens / self._budget, seconds)
        for (request, piece), found in zip(batch, scores, strict=True):
            if request.is_wanted:
                self._place(request, piece, found)

    def _place(self, request: QueuedRequest, piece: Piece, scores: Sequence[PairScore]) -> None:
        request.place(piece, scores)
        self.admission.add(-piece.num_pairs, -piece.num_tokens)
        if not request.num_pairs:
            self._end(request)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def next_slice(
    turns: Turns, max_ahead: int, takes_media: bool
) -> tuple[QueuedRequest, Slice] | None:
    """A slice of the first request that may have one, which then goes to the end of the line.

    max_ahead: who has as many tokens ahead of the scorer may not.
    """
    for request in turns:
        if request.num_ahead >= max_ahead or (request.slices[0].has_media and not takes_media):
            continue
        part = request.slices.popleft()
        turns.move_to_end(request)
        if not request.slices:
            del turns[request]
        return request, part
    return None


def next_batch(turns: Turns, max_batch_tokens: int) -> Batch:
    """Pieces of one request after the other, within max_batch_tokens; at least one.

    Whose piece does not fit keeps its turn, so that it comes first in the next batch.
    """
    batch: Batch = []
    left = max_batch_tokens
    line = deque(turns)
    while line:
        request = line.popleft()
        if batch and request.ready[0].num_tokens > left:
            continue
        piece = request.ready.popleft()
        left -= piece.num_tokens
        batch.append((request, piece))
        turns.move_to_end(request)
        if request.ready:
            line.append(request)
        else:
            del turns[request]
    return batch


def _results(run: Run, pieces: Sequence[Piece]) -> list[list[Any]]:
    scores = run([piece.prepared for piece in pieces])
    assert [len(each) for each in scores] == [piece.num_pairs for piece in pieces]
    return scores


async def _in_thread(
    threads: ThreadPoolExecutor, call: Callable[[], Any]
) -> tuple[Any, Exception | None]:
    return await asyncio.get_running_loop().run_in_executor(threads, _outcome, call)


def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a call gave or raised, as values: not every exception passes through a future (one
    that is a StopIteration never arrives, a CancelledError ends who waits for it).
    """
    try:
        return call(), None
    except Exception as error:  # the outermost border of a thread
        return None, error
    except BaseException as error:
        return None, RuntimeError(f"{type(error).__name__}: {error}")


class Admission:
    """Pairs and tokens that are in: waiting, or in the batch being scored.

    Requests take turns of turn_tokens. So a new one waits, of each that is in, for as many tokens
    as it brings itself, for one turn at least, and for no more than there are left.

    max_wait_s: who would wait longer for the others, at the speed of the last batches, is refused.
    Before the first batch, whose speed nobody knows, who brings more than max_pairs together is.
    Nobody is refused when nobody waits.
    """

    def __init__(
        self, max_wait_s: float, max_pairs: int, turn_tokens: int, observer: Metrics | None
    ) -> None:
        self._max_wait_s = max_wait_s
        self._max_pairs = max_pairs
        self._turn_tokens = turn_tokens
        self._observer = observer
        self.num_pairs = 0
        self.num_tokens = 0
        self.tokens_per_s: float | None = None

    def wait_s(self, left: Sequence[int], num_tokens: int) -> float:
        """What a request of num_tokens would wait for others; 0 before the first batch.

        left: the tokens of each request that is in.
        """
        if self.tokens_per_s is None:
            return 0.0
        return self._ahead(left, num_tokens, drained=0) / self.tokens_per_s

    def check(self, left: Sequence[int], num_pairs: int, num_tokens: int) -> None:
        """Raises TooManyRequests on a request of so many more, with the time until it is none."""
        if not self.num_pairs or not num_pairs:
            return
        if self.tokens_per_s is None:
            if self.num_pairs + num_pairs > self._max_pairs:
                raise self._refusal(self._max_wait_s)
        elif self.wait_s(left, num_tokens) > self._max_wait_s:
            raise self._refusal(self._room_in_s(left, num_tokens, self.tokens_per_s))

    def _ahead(self, left: Sequence[int], num_tokens: int, drained: float) -> float:
        """Tokens that are scored before it, once each of those that are in had `drained` more."""
        own = max(num_tokens, self._turn_tokens)
        return sum(min(max(0.0, tokens - drained), own) for tokens in left)

    def _room_in_s(self, left: Sequence[int], num_tokens: int, tokens_per_s: float) -> float:
        """When the request would be taken, if nobody else came."""
        low, high = 0.0, float(max(left))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._ahead(left, num_tokens, middle) > self._max_wait_s * tokens_per_s:
                low = middle
            else:
                high = middle
        return sum(min(tokens, high) for tokens in left) / tokens_per_s

    def _refusal(self, retry_after_s: float) -> TooManyRequests:
        return TooManyRequests(
            f"no capacity left: {self.num_pairs} pairs are waiting, try again later",
            code="overloaded",
            retry_after_s=retry_after_s,
        )

    def add(self, num_pairs: int, num_tokens: int) -> None:
        self.num_pairs += num_pairs
        self.num_tokens += num_tokens
        self._tell(lambda observer: observer.queue(self.num_pairs, self.num_tokens))

    def scored(self, num_pairs: int, num_tokens: int, fill: float, seconds: float) -> None:
        """One batch. In the moving average a full one weighs more: a small one is slow for its
        size.
        """
        if num_tokens and seconds > 0:
            speed = num_tokens / seconds
            before = speed if self.tokens_per_s is None else self.tokens_per_s
            self.tokens_per_s = before + (0.1 + 0.4 * min(1.0, fill)) * (speed - before)
        self._tell(lambda observer: observer.batch(num_pairs, num_tokens, fill, seconds))

    def _tell(self, told: Callable[[Metrics], None]) -> None:
        try:
            if self._observer is not None:
                told(self._observer)
        except Exception:  # metrics that fail must not stop the queue
            logger.exception("the queue's observer failed")
