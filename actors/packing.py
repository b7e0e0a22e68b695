"""Many pairs end to end in one row, shared prefixes once: the prefix trie and its attention plan.

Plain numpy on token ids. Two pairs share a stretch where their ids and their visuals are equal from
the start on; causality makes computing it once exact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.prepared import PreparedPair

MIN_SHARED_TOKENS = 8
"""A shorter shared stretch costs more in bookkeeping than it saves in arithmetic."""
MAX_DEPTH = 16
"""Deeper sharing (documents that continue each other) would add one attention pass a level."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A trie node: tokens [start, end) of the packed row, its descendants' up to subtree_end.

    Depth-first order keeps a node's descendants right behind it. `pair` gives the tokens
    (they are tokens [offset, offset + end - start) of that pair).
    """

    start: int
    end: int
    subtree_end: int
    depth: int
    pair: int
    offset: int


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Queries [query_start, query_end) attend to keys [key_start, key_end)."""

    query_start: int
    query_end: int
    key_start: int
    key_end: int
    is_causal: bool


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Blocks by level: own tokens first, then one list per ancestor depth.

    Within a level no query row occurs twice; partial results of several levels are merged by
    their log-sum-exp.
    """

    num_queries: int
    levels: tuple[tuple[AttentionBlock, ...], ...]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """T tokens of many pairs, no padding. last_rows[p] is the row of pair p's last token."""

    input_ids: np.ndarray  # (T,) int32
    position_ids: np.ndarray  # (3, T) int32 temporal, height, width (MRoPE)
    visual_rows: np.ndarray  # (V,) int64, rows that hold visual tokens
    visual_tokens: np.ndarray  # (V,) int64, for each of them its row in the visuals' features
    last_rows: np.ndarray  # (P,) int64
    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)


def sharing_keys(pair: PreparedPair) -> np.ndarray:
    """(L,) int64: equal up to a token exactly where ids and visuals are equal up to it.

    A visual's tokens carry its index instead of the placeholder's id.
    """
    return np.where(pair.visual_index >= 0, -1 - pair.visual_index, pair.input_ids).astype(np.int64)


def common_prefix_length(left: np.ndarray, right: np.ndarray) -> int:
    """How many leading elements of two arrays are equal."""
    length = min(len(left), len(right))
    differing = np.flatnonzero(left[:length] != right[:length])
    return int(differing[0]) if len(differing) else length


def pack(pairs: Sequence[PreparedPair], visual_sizes: Sequence[int]) -> PackedBatch:
    """Lay pairs out as a depth-first prefix trie.

    The pairs' visual_index must refer to one common list of visuals, whose numbers of tokens are
    visual_sizes; their features are expected end to end in that order.
    """
    keys = [sharing_keys(pair) for pair in pairs]
    segments, last_rows = _Trie(keys).build()
    tokens = [slice(s.offset, s.offset + s.end - s.start) for s in segments]
    visual_index = np.concatenate(
        [pairs[s.pair].visual_index[t] for s, t in zip(segments, tokens, strict=True)]
    )
    visual_rows = np.flatnonzero(visual_index >= 0)
    return PackedBatch(
        input_ids=np.concatenate(
            [pairs[s.pair].input_ids[t] for s, t in zip(segments, tokens, strict=True)]
        ),
        position_ids=np.concatenate(
            [pairs[s.pair].position_ids[:, t] for s, t in zip(segments, tokens, strict=True)],
            axis=1,
        ),
        visual_rows=visual_rows,
        visual_tokens=_feature_rows(visual_index, visual_rows, visual_sizes),
        last_rows=last_rows,
        segments=tuple(segments),
    )


def _feature_rows(
    visual_index: np.ndarray, visual_rows: np.ndarray, visual_sizes: Sequence[int]
) -> np.ndarray:
    """The feature row of each visual token: a visual's tokens always stand together, in order."""
    starts = np.cumsum([0, *visual_sizes])[:-1]
    visuals = visual_index[visual_rows]
    breaks = np.diff(visual_rows, prepend=-2) != 1
    breaks |= np.diff(visuals, prepend=-2) != 0
    run_starts = np.flatnonzero(breaks)
    run_lengths = np.diff(np.append(run_starts, len(visuals)))
    within = np.arange(len(visuals)) - np.repeat(run_starts, run_lengths)
    return starts[visuals] + within if len(visuals) else np.empty(0, dtype=np.int64)


class _Trie:
    """Places the tokens of sorted key sequences depth first."""

    def __init__(self, keys: Sequence[np.ndarray]) -> None:
        self._keys = keys
        self._order = sorted(range(len(keys)), key=lambda pair: _sort_key(keys[pair]))
        self._shared_with_previous = [0] + [
            common_prefix_length(keys[left], keys[right])
            for left, right in zip(self._order, self._order[1:], strict=False)
        ]
        self._segments: list[Segment] = []
        self._last_rows = np.full(len(keys), -1, dtype=np.int64)
        self._num_rows = 0

    def build(self) -> tuple[list[Segment], np.ndarray]:
        self._grow(0, len(self._order), offset=0, depth=0)
        assert (self._last_rows >= 0).all()
        return self._segments, self._last_rows

    def _grow(self, low: int, high: int, offset: int, depth: int) -> None:
        """Place what is left of the pairs at [low, high) in sorted order.

        Their first `offset` tokens are equal and end at the current row.
        """
        while low < high and len(self._keys[self._order[low]]) == offset:
            self._last_rows[self._order[low]] = self._num_rows - 1
            low += 1
        if low == high:
            return
        if high - low == 1:
            shared = len(self._keys[self._order[low]])
        else:
            shared = min(self._shared_with_previous[low + 1 : high])
            if shared < offset + MIN_SHARED_TOKENS or depth == MAX_DEPTH:
                return self._branch(low, high, offset, depth)
        self._place(low, high, offset, shared, depth)

    def _branch(self, low: int, high: int, offset: int, depth: int) -> None:
        least = offset + MIN_SHARED_TOKENS if depth < MAX_DEPTH else np.inf
        start = low
        for index in range(low + 1, high + 1):
            if index == high or self._shared_with_previous[index] < least:
                self._grow(start, index, offset, depth)
                start = index

    def _place(self, low: int, high: int, offset: int, end: int, depth: int) -> None:
        start = self._num_rows
        self._num_rows += end - offset
        index = len(self._segments)
        node = Segment(start, self._num_rows, self._num_rows, depth, self._order[low], offset)
        self._segments.append(node)
        self._grow(low, high, end, depth + 1)
        self._segments[index] = replace(node, subtree_end=self._num_rows)


def _sort_key(keys: np.ndarray) -> bytes:
    """Byte order equal to the lexicographic order of the (small, signed) keys."""
    return (keys + (1 << 40)).astype(">i8").tobytes()


def attention_plan(batch: PackedBatch) -> AttentionPlan:
    """Every token attends to its own segment causally and to all of its ancestors."""
    own = tuple(AttentionBlock(s.start, s.end, s.start, s.end, True) for s in batch.segments)
    levels = _by_depth(
        (s.depth, AttentionBlock(s.end, s.subtree_end, s.start, s.end, False))
        for s in batch.segments
    )
    return AttentionPlan(batch.num_tokens, (own, *levels))


def last_token_plan(batch: PackedBatch, rows: np.ndarray) -> AttentionPlan:
    """As attention_plan, with only `rows` (sorted, distinct, each a segment's last) as queries."""

    def queries(start: int, end: int) -> tuple[int, int]:
        first, last = np.searchsorted(rows, (start, end))
        return int(first), int(last)

    own = tuple(
        AttentionBlock(*span, s.start, s.end, False)
        for s in batch.segments
        if (span := queries(s.start, s.end))[0] < span[1]
    )
    levels = _by_depth(
        (s.depth, AttentionBlock(*queries(s.end, s.subtree_end), s.start, s.end, False))
        for s in batch.segments
    )
    return AttentionPlan(len(rows), (own, *levels))


def _by_depth(
    blocks: Iterable[tuple[int, AttentionBlock]],
) -> list[tuple[AttentionBlock, ...]]:
    levels: dict[int, list[AttentionBlock]] = {}
    for depth, block in blocks:
        if block.query_end > block.query_start:
            levels.setdefault(depth, []).append(block)
    return [tuple(levels[depth]) for depth in sorted(levels)]
