"""Many pairs end to end in one row, shared prefixes once: the prefix trie and its attention plan.

Plain numpy on token ids. Two pairs share a stretch where their ids and their visuals are equal from
the start on; causality makes computing it once exact. A prefix whose keys and values are already
there from an earlier batch is not computed again: its tokens are keys, never queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from shardrank.actors.prepared import PreparedPair

MIN_SHARED_TOKENS = 8
"""A shorter shared stretch costs more in bookkeeping than it saves in arithmetic."""
MAX_DEPTH = 16
"""Deeper sharing (documents that continue each other) would add one attention pass a level."""
MERGE_COST = 3
"""A query whose part is merged moves about as many bytes as so many keys that are gathered, at two
to four query heads a key head. Not timed on a device."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A trie node: tokens [offset, offset + end - start) of `pair`, at the key rows [start, end).

    Key rows are the cached prefix's tokens, then the batch's own. Depth-first order keeps the
    descendants of a node together, at the batch's rows [below_start, below_end).
    """

    start: int
    end: int
    below_start: int
    below_end: int
    depth: int
    pair: int
    offset: int


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Queries [query_start, query_end) attend to all keys of the ranges `before`, and to keys
    [key_start, key_end), of which a causal block's n-th query sees the first n.
    """

    query_start: int
    query_end: int
    key_start: int
    key_end: int
    is_causal: bool
    before: tuple[tuple[int, int], ...] = ()

    @property
    def num_queries(self) -> int:
        return self.query_end - self.query_start

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        return (*self.before, (self.key_start, self.key_end))

    @property
    def num_keys(self) -> int:
        return sum(end - start for start, end in self.keys)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Blocks by level: own tokens first, then one list for each depth of ancestors that are no
    block's `before`.

    Within a level no query row occurs twice; partial results of several levels are merged by
    their log-sum-exp.
    """

    num_queries: int
    levels: tuple[tuple[AttentionBlock, ...], ...]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """T tokens of many pairs, no padding. last_rows[p] is the row of pair p's last token.

    Tokens attend to num_cached key rows of an earlier batch, which come before their own.
    """

    input_ids: np.ndarray  # (T,) int32
    position_ids: np.ndarray  # (3, T) int32 temporal, height, width (MRoPE)
    visual_rows: np.ndarray  # (V,) int64, rows that hold visual tokens
    visual_index: np.ndarray  # (V,) int32, for each of them its visual
    visual_offset: np.ndarray  # (V,) int64, and which of that visual's tokens it is
    last_rows: np.ndarray  # (P,) int64
    segments: tuple[Segment, ...]
    num_cached: int

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    def path_rows(self, pair: int, length: int) -> np.ndarray:
        """The key rows of the first `length` tokens of a pair."""
        row = self.last_rows[pair]
        path = [
            np.arange(s.start, s.end)
            for s in self.segments
            if s.start <= row + self.num_cached < s.end or s.below_start <= row < s.below_end
        ]
        return np.concatenate(path)[:length]


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


def pack(pairs: Sequence[PreparedPair], prefix: np.ndarray | None = None) -> PackedBatch:
    """Lay pairs out as a depth-first prefix trie.

    The pairs' visual_index must refer to one common list of visuals. prefix: the sharing keys of
    tokens whose keys and values are at hand; the batch says how many of them it uses.
    """
    keys = [sharing_keys(pair) for pair in pairs]
    trie = _Trie(keys, _usable(prefix, keys))
    own = [s for s in trie.segments if s.start >= trie.num_cached]
    tokens = [slice(s.offset, s.offset + s.end - s.start) for s in own]
    visual_index = np.concatenate(
        [pairs[s.pair].visual_index[t] for s, t in zip(own, tokens, strict=True)]
    )
    visual_rows = np.flatnonzero(visual_index >= 0)
    offsets = {s.pair: _offsets_in_visuals(pairs[s.pair].visual_index) for s in own}
    return PackedBatch(
        input_ids=np.concatenate(
            [pairs[s.pair].input_ids[t] for s, t in zip(own, tokens, strict=True)]
        ),
        position_ids=np.concatenate(
            [pairs[s.pair].position_ids[:, t] for s, t in zip(own, tokens, strict=True)], axis=1
        ),
        visual_rows=visual_rows,
        visual_index=visual_index[visual_rows],
        visual_offset=np.concatenate(
            [offsets[s.pair][t] for s, t in zip(own, tokens, strict=True)]
        )[visual_rows],
        last_rows=trie.last_rows,
        segments=tuple(trie.segments),
        num_cached=trie.num_cached,
    )


def _usable(prefix: np.ndarray | None, keys: Sequence[np.ndarray]) -> np.ndarray:
    """The prefix, cut so that no pair ends inside it: a last token is always computed."""
    usable = np.empty(0, dtype=np.int64) if prefix is None else prefix
    for key in keys:
        if len(key) <= len(usable) and np.array_equal(key, usable[: len(key)]):
            usable = usable[: len(key) - 1]
    return usable


def _offsets_in_visuals(visual_index: np.ndarray) -> np.ndarray:
    """For each token its place in its visual, whose tokens always stand together, in order."""
    rows = np.arange(len(visual_index))
    starts = np.diff(visual_index, prepend=-2) != 0
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))


@dataclass(slots=True)
class _Node:
    """A segment in the making, at the batch's row `row`; cached tokens take up no rows."""

    pair: int
    offset: int
    length: int
    depth: int
    is_cached: bool
    row: int
    below_end: int = -1

    def segment(self, num_cached: int) -> Segment:
        start = self.offset if self.is_cached else self.row + num_cached
        below = self.row if self.is_cached else self.row + self.length
        end = start + self.length
        return Segment(start, end, below, self.below_end, self.depth, self.pair, self.offset)


class _Trie:
    """Places the tokens of sorted key sequences depth first, those on the prefix's path apart."""

    def __init__(self, keys: Sequence[np.ndarray], prefix: np.ndarray) -> None:
        self._prefix = len(keys)  # the prefix is one more sequence, which is no pair's
        self._keys = [*keys, prefix]
        members = range(len(self._keys) if len(prefix) else len(keys))
        self._order = sorted(members, key=lambda pair: _sort_key(self._keys[pair]))
        self._shared_with_previous = [0] + [
            common_prefix_length(self._keys[left], self._keys[right])
            for left, right in zip(self._order, self._order[1:], strict=False)
        ]
        self._nodes: list[_Node] = []
        self._num_rows = 0
        self.num_cached = 0
        self.last_rows = np.full(len(keys), -1, dtype=np.int64)
        self._grow(0, len(self._order), offset=0, depth=0)
        assert (self.last_rows >= 0).all()
        self.segments = [node.segment(self.num_cached) for node in self._nodes]

    def _grow(self, low: int, high: int, offset: int, depth: int) -> None:
        """Place what is left of the pairs at [low, high) in sorted order.

        Their first `offset` tokens are equal and end at the current row.
        """
        while low < high and len(self._keys[self._order[low]]) == offset:
            if self._order[low] != self._prefix:
                self.last_rows[self._order[low]] = self._num_rows - 1
            low += 1
        if low == high or self._order[low:high] == [self._prefix]:
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
        members = self._order[low:high]
        is_cached = self._prefix in members
        pair = next(member for member in members if member != self._prefix)
        node = _Node(pair, offset, end - offset, depth, is_cached, self._num_rows)
        self._nodes.append(node)
        if is_cached:
            self.num_cached = end
        else:
            self._num_rows += node.length
        self._grow(low, high, end, depth + 1)
        node.below_end = self._num_rows


def _sort_key(keys: np.ndarray) -> bytes:
    """Byte order equal to the lexicographic order of the (small, signed) keys."""
    return (keys + (1 << 40)).astype(">i8").tobytes()


def attention_plan(batch: PackedBatch, gathers: bool = False) -> AttentionPlan:
    """Every token attends to its own segment causally and to all of its ancestors.

    gathers: ancestors that are short beside what is below them come before the own keys.
    """
    return _plan(batch, batch.num_tokens, lambda *rows: rows, True, gathers)


def last_token_plan(batch: PackedBatch, rows: np.ndarray, gathers: bool = False) -> AttentionPlan:
    """An attention_plan with only `rows` (sorted, distinct, each a segment's last) as queries."""

    def queries(start: int, end: int) -> tuple[int, int]:
        first, last = np.searchsorted(rows, (start, end))
        return int(first), int(last)

    return _plan(batch, len(rows), queries, False, gathers)


def _plan(
    batch: PackedBatch,
    num_queries: int,
    queries: Callable[[int, int], tuple[int, int]],
    is_causal: bool,
    gathers: bool,
) -> AttentionPlan:
    """`queries` gives the query rows that a range of the batch's rows has."""
    cached = batch.num_cached
    spans = [queries(*(max(row - cached, 0) for row in (s.start, s.end))) for s in batch.segments]
    num_blocks = _num_below(batch.segments, [last > first for first, last in spans])
    own: list[AttentionBlock] = []
    levels: dict[int, list[AttentionBlock]] = {}
    path: list[tuple[tuple[int, int], ...]] = []  # of each ancestor, what comes before own keys
    for segment, span, blocks in zip(batch.segments, spans, num_blocks, strict=True):
        keys = segment.start, segment.end
        del path[segment.depth :]
        if span[0] < span[1]:
            before = tuple(chain.from_iterable(path))
            own.append(AttentionBlock(*span, *keys, is_causal, before))
        below = queries(segment.below_start, segment.below_end)
        num_below = below[1] - below[0]
        if gathers and (keys[1] - keys[0]) * blocks <= MERGE_COST * num_below:
            path.append((keys,))
            continue
        path.append(())
        if num_below:
            levels.setdefault(segment.depth, []).append(AttentionBlock(*below, *keys, False))
    return AttentionPlan(num_queries, (tuple(own), *(tuple(levels[d]) for d in sorted(levels))))


def _num_below(segments: Sequence[Segment], counts: Sequence[bool]) -> list[int]:
    """For each segment, in depth-first order, how many of those below it count."""
    totals = [0] * len(segments)
    path: list[int] = []
    for index, segment in enumerate(segments):
        del path[segment.depth :]
        for ancestor in path:
            totals[ancestor] += counts[index]
        path.append(index)
    return totals
