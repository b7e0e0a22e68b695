"""What one request in the queue still has to come, and how those that wait take turns."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence

from shardrank.actors.data import CandidateSet, PairScore
from shardrank.actors.preprocessor import Preprocessor
from shardrank.serve.queue.slices import NobodyWaits, Piece, Slice, prepare, slices


class Waiting:
    """A request from its admission until `done`, which says nothing but that it has ended.

    num_pairs and num_tokens count what is not scored yet, num_ahead the tokens that are prepared
    or being prepared and not taken by the scorer. Of what is not prepared they are estimates.
    """

    def __init__(
        self, sets: Sequence[CandidateSet], preprocessor: Preprocessor, max_batch_tokens: int
    ) -> None:
        self._sets = sets
        self._preprocessor = preprocessor
        self._max_batch_tokens = max_batch_tokens
        self._queries = [
            preprocessor.open_query(each.query, each.instruction, each.options, permit=self._permit)
            for each in sets
        ]
        self._scores: list[list[PairScore | None]] = [[None] * len(each.documents) for each in sets]
        self.slices = deque(
            part
            for index, (each, query) in enumerate(zip(sets, self._queries, strict=True))
            for part in slices(index, each, query.options, max_batch_tokens)
        )
        self.ready: deque[Piece] = deque()
        self.num_pairs = sum(len(each.documents) for each in sets)
        self.num_tokens = sum(part.num_tokens for part in self.slices)
        self.num_ahead = 0
        self.is_wanted = True
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None

    def _permit(self) -> None:
        if not self.is_wanted:
            raise NobodyWaits

    def prepare(self, part: Slice) -> list[Piece]:
        """In any thread, several parts at once."""
        index = part.set_index
        return prepare(
            self._preprocessor,
            self._queries[index],
            self._sets[index],
            part,
            self._max_batch_tokens,
            self._permit,
        )

    def place(self, piece: Piece, scores: Sequence[PairScore]) -> None:
        end = piece.start + piece.num_pairs
        self._scores[piece.set_index][piece.start : end] = scores
        self.num_pairs -= piece.num_pairs
        self.num_tokens -= piece.num_tokens

    def result(self) -> list[list[PairScore]]:
        """Scores in order; raises what the request failed of."""
        if self.error is not None:
            raise self.error
        scores = [[score for score in each if score is not None] for each in self._scores]
        assert [len(each) for each in scores] == [len(each.documents) for each in self._sets]
        return scores


Turns = OrderedDict[Waiting, None]
"""Requests that wait for the same thing: the first one's turn is next."""
Batch = list[tuple[Waiting, Piece]]


def next_slice(turns: Turns, max_ahead: int, takes_media: bool) -> tuple[Waiting, Slice] | None:
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
