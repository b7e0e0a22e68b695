"""A queued request: slices of its documents to prepare, pieces of them to score, its scores.

Knows nothing of the others in the queue.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardrank.actors.config import OFFICIAL_OPTIONS, PIXELS_PER_TOKEN, QueryOptions
from shardrank.actors.data import CandidateSet, Content, PairScore, Video
from shardrank.actors.errors import RerankError
from shardrank.actors.media.images import Permit
from shardrank.actors.planner import set_costs
from shardrank.actors.prepared import PreparedPair, PreparedSet
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.sides import OpenQuery, OpenSide

SLICE_DOCUMENTS = 64
SLICES_A_BATCH = 2
"""A slice is expected to fill half a batch at most: page images are large, and others wait."""
PIECES_A_BATCH = 4
"""So many come of a request with many documents, that others' fit beside them."""

_BYTES_PER_TOKEN = 3.5  # English 4 to 5; Chinese 4 to 5 as well, at 3 bytes a character
_MEASURED_CHARS = 1_000
_PROMPT_TOKENS = 70  # template and default instruction
_IMAGE_TOKENS = 1_000
_FRAME_PAIR_TOKENS = 250
_FILE_FRAMES = 32  # half a minute at one frame a second


class NobodyWaits(Exception):
    """Ends the reading of a side of a request that has left."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Documents [start, stop) of one set, with their tokens as far as one can tell."""

    set_index: int
    start: int
    stop: int
    num_tokens: int
    has_media: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Prepared pairs from `start` on of one set.

    num_tokens is what the scorer's planner counts: what all of them share, once, and their own.
    """

    set_index: int
    start: int
    prepared: PreparedSet
    num_tokens: int

    @property
    def num_pairs(self) -> int:
        return self.prepared.num_pairs


class QueuedRequest:
    """One from its admission until `done`, which says nothing but that it has ended.

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
            preprocessor.open_query(
                each.query,
                each.instruction,
                each.options,
                permit=self._permit,
                role=each.role,
            )
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


def estimated_tokens(
    candidate_set: CandidateSet, options: QueryOptions | RerankError = OFFICIAL_OPTIONS
) -> tuple[int, list[int]]:
    """About how many tokens the documents share, and how many each has of its own.

    Nothing is decoded or tokenised: a text by its length, media by a guess. options: every field
    filled.
    """
    query = candidate_set.query
    if isinstance(query, RerankError) or isinstance(options, RerankError):
        return 0, [0] * len(candidate_set.documents)
    instruction = _text_tokens([str(candidate_set.instruction or "")], options)
    shared = _PROMPT_TOKENS + instruction + _side_tokens(query, options)
    return shared, [_side_tokens(document, options) for document in candidate_set.documents]


def slices(
    set_index: int,
    candidate_set: CandidateSet,
    options: QueryOptions | RerankError,
    max_batch_tokens: int,
) -> list[Slice]:
    """The whole set, in order."""
    shared, own = estimated_tokens(candidate_set, options)
    return [
        Slice(
            set_index,
            run.start,
            run.stop,
            shared + sum(own[run.start : run.stop]),
            _has_media(candidate_set.query)
            or any(map(_has_media, candidate_set.documents[run.start : run.stop])),
        )
        for run in _runs(own, max_batch_tokens // SLICES_A_BATCH, SLICE_DOCUMENTS)
    ]


def prepare(
    preprocessor: Preprocessor,
    query: OpenQuery,
    candidate_set: CandidateSet,
    part: Slice,
    max_batch_tokens: int,
    permit: Permit,
) -> list[Piece]:
    """A slice's pairs, in order. `permit` is asked before each document and each medium, and may
    raise NobodyWaits.
    """

    def pairs() -> Iterator[tuple[OpenQuery, OpenSide]]:
        for index in range(part.start, part.stop):
            permit()
            name = candidate_set.name_of(index)
            document = candidate_set.documents[index]
            yield query, preprocessor.open_document(document, name, permit=permit)

    return pieces(part, preprocessor.prepare_pairs(pairs()), max_batch_tokens)


def pieces(part: Slice, prepared: PreparedSet, max_batch_tokens: int) -> list[Piece]:
    """At most a batch each, a pair alone excepted. All have the slice's visuals; the scorer
    encodes those that its pairs refer to.
    """
    is_scored = [isinstance(pair, PreparedPair) for pair in prepared.pairs]
    costs = set_costs([pair for pair in prepared.pairs if isinstance(pair, PreparedPair)], 0)
    shared = costs[0].shared if costs else 0
    following = iter(costs)
    own = [next(following).own if scored else 0 for scored in is_scored]
    room = min(max_batch_tokens // PIECES_A_BATCH, max_batch_tokens - shared)
    return [
        Piece(
            part.set_index,
            part.start + run.start,
            PreparedSet(prepared.pairs[run.start : run.stop], prepared.visuals),
            shared + sum(own[run.start : run.stop]) if any(is_scored[run.start : run.stop]) else 0,
        )
        for run in _runs(own, room, len(own))
    ]


def _runs(sizes: Sequence[int], max_size: int, max_length: int) -> Iterator[range]:
    """Consecutive indices whose sizes stay within max_size together, at least one each."""
    start, size = 0, 0
    for index, own in enumerate(sizes):
        if index > start and (size + own > max_size or index - start == max_length):
            yield range(start, index)
            start, size = index, 0
        size += own
    if sizes:
        yield range(start, len(sizes))


def _has_media(side: Content | RerankError) -> bool:
    return isinstance(side, Content) and side.has_media


def _side_tokens(side: Content | RerankError, options: QueryOptions) -> int:
    if isinstance(side, RerankError):
        return 0
    assert options.image_max_pixels is not None and options.image_min_pixels is not None
    most, least = options.image_max_pixels, options.image_min_pixels
    image_tokens = min(max(_IMAGE_TOKENS, least // PIXELS_PER_TOKEN), most // PIXELS_PER_TOKEN)
    videos = sum(_video_tokens(video, options) for video in side.videos)
    return _text_tokens(side.texts, options) + image_tokens * len(side.images) + videos


def _text_tokens(texts: Sequence[str], options: QueryOptions) -> int:
    assert options.max_length is not None
    size = sum(len(text) * _bytes_per_char(text) for text in texts)
    return min(int(size / _BYTES_PER_TOKEN), options.max_length)


def _bytes_per_char(text: str) -> float:
    """What its beginning has, where it is not ASCII: this runs on the event loop."""
    head = text[:_MEASURED_CHARS]
    return 1 if text.isascii() else len(head.encode("utf-8", "surrogatepass")) / len(head)


def _video_tokens(video: Video, options: QueryOptions) -> int:
    assert options.max_frames is not None and options.video_max_pixels is not None
    num_frames = _FILE_FRAMES if video.frames is None else len(video.frames)
    pairs = (min(num_frames, options.max_frames) + 1) // 2
    return pairs * min(_FRAME_PAIR_TOKENS, options.video_max_pixels // PIXELS_PER_TOKEN)
