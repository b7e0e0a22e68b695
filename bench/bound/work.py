"""The work of a workload: what must be computed, and what implementations of each kind compute.

Counted on the pairs as the model reads them, so that a bound (a peer's FLOPs over the needed ones)
is what the ratio of speeds would be if both used the machine equally well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from bench.bound.flops import Flops, ModelShape
from bench.workloads import Workload
from shardrank.actors import CandidateSet, RerankerConfig
from shardrank.actors.packing import common_prefix_length, sharing_keys
from shardrank.actors.preprocessor import Preprocessor

# (L,) int64: token ids; a visual's tokens hold -1 - its number in the whole workload instead.
Tokens = np.ndarray

CACHE_BLOCK = 16  # tokens of a block of vLLM's prefix cache, where a peer does not say its own


@dataclass(frozen=True, slots=True)
class Counted:
    """The pairs of a workload by set, and of each distinct visual its number of patches."""

    sets: list[list[Tokens]]
    patches: list[int]

    @property
    def pairs(self) -> list[Tokens]:
        return [pair for pairs in self.sets for pair in pairs]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.pairs))

    def part(self, places: Sequence[Sequence[int]]) -> "Counted":
        """The pairs at some places of the whole workload, set by set."""
        pairs = self.pairs
        return Counted([[pairs[place] for place in row] for row in places], self.patches)

    @property
    def num_distinct_tokens(self) -> int:
        return sum(_distinct(pairs)[0] for pairs in self.sets)


def count(workload: Workload, checkpoint: Path) -> Counted:
    """Raises the first pair's error: a workload of the benchmark has none."""
    preprocessor = Preprocessor(RerankerConfig(model=str(checkpoint)))
    numbers: dict[bytes, int] = {}
    patches: list[int] = []
    sets: list[list[Tokens]] = []
    for one in workload.sets:
        prepared = preprocessor.prepare(CandidateSet.parse(one["query"], one["documents"]))
        for visual in prepared.visuals:
            if numbers.setdefault(visual.key, len(patches)) == len(patches):
                patches.append(4 * visual.num_tokens)
        table = np.array([numbers[visual.key] for visual in prepared.visuals] or [0])
        sets.append([])
        for pair in prepared.pairs:
            if isinstance(pair, Exception):
                raise pair
            keys = sharing_keys(pair)
            visual_keys = -1 - table[np.clip(-1 - keys, 0, len(table) - 1)]
            sets[-1].append(np.where(keys < 0, visual_keys, keys))
    return Counted(sets, patches)


def flops_of(work: str, counted: Counted, shape: ModelShape) -> Flops:
    """`work` is a peer's word for what it does, with the batch's or block's size: "padded:8"."""
    kind, _, size = work.partition(":")
    if kind == "needed":
        return _needed(counted, shape)
    if kind == "prefix_cached":
        return _prefix_cached(counted, shape, int(size or CACHE_BLOCK))
    batch_size = 1 if kind == "one_by_one" else int(size)
    return _padded(counted, shape, batch_size, is_sorted=kind == "sorted_padded")


def _needed(counted: Counted, shape: ModelShape) -> Flops:
    """Each token of each query's prefix trie once, each visual once; and in the last layer keys
    and values of all of them, all else of the pairs' last tokens only."""
    flops = Flops()
    last_rows, last_keys = 0, 0
    rows, query_keys = 0, 0
    for pairs in counted.sets:
        own_rows, own_query_keys = _distinct(pairs)
        rows, query_keys = rows + own_rows, query_keys + own_query_keys
        distinct = {pair.tobytes(): len(pair) for pair in pairs}
        last_rows, last_keys = last_rows + len(distinct), last_keys + sum(distinct.values())
    shape.decoder.add_layers(flops, shape.decoder.layers - 1, rows, query_keys)
    shape.decoder.add_layers(flops, 1, last_rows, last_keys, key_rows=rows)
    for patches in counted.patches:
        shape.vision.add_visual(flops, patches)
    return flops


def _padded(counted: Counted, shape: ModelShape, batch_size: int, is_sorted: bool) -> Flops:
    """Batches as long as their longest pair, all layers whole, every visual of every pair.

    A pair alone needs no mask, so its attention is causal; a padded batch's is the whole square.
    """
    flops = Flops()
    pairs = counted.pairs
    if is_sorted:
        pairs = sorted(pairs, key=len, reverse=True)
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        longest = max(map(len, batch))
        square = longest * (longest + 1) / 2 if batch_size == 1 else longest * longest
        shape.decoder.add_layers(
            flops, shape.decoder.layers, len(batch) * longest, len(batch) * square
        )
    for pair in pairs:
        for visual in _visuals(pair):
            shape.vision.add_visual(flops, counted.patches[visual])
    return flops


def _prefix_cached(counted: Counted, shape: ModelShape, block: int) -> Flops:
    """Pair after pair without what an earlier one had in common, by whole blocks; all layers."""
    flops = Flops()
    seen: set[bytes] = set()
    for pair in counted.pairs:
        cached, length = _cached_tokens(pair, seen, block), len(pair)
        query_keys = (length * (length + 1) - cached * (cached + 1)) / 2
        shape.decoder.add_layers(flops, shape.decoder.layers, length - cached, query_keys)
    for patches in counted.patches:
        shape.vision.add_visual(flops, patches)
    return flops


def _cached_tokens(pair: Tokens, seen: set[bytes], block: int) -> int:
    """Leading tokens whose blocks are known; its own become known. The last token never is."""
    chain, starts = blake2b(digest_size=16), []
    for start in range(0, len(pair) - block + 1, block):
        chain.update(pair[start : start + block].tobytes())
        starts.append(chain.digest())
    known = next((i for i, start in enumerate(starts) if start not in seen), len(starts))
    seen.update(starts)
    return min(known, (len(pair) - 1) // block) * block


def _distinct(pairs: Sequence[Tokens]) -> tuple[int, int]:
    """Nodes of the pairs' prefix trie, and over them the sum of the tokens each attends to."""
    rows, query_keys = 0, 0
    previous: Tokens = np.empty(0, dtype=np.int64)
    for pair in sorted(pairs, key=_order):
        shared, length = common_prefix_length(previous, pair), len(pair)
        rows += length - shared
        query_keys += (length * (length + 1) - shared * (shared + 1)) // 2
        previous = pair
    return rows, query_keys


def _order(pair: Tokens) -> bytes:
    """Byte order equal to the lexicographic order of the (small, signed) values."""
    return (pair + (1 << 40)).astype(">i8").tobytes()


def _visuals(pair: Tokens) -> Iterator[int]:
    """The visual of each run of its tokens; one that comes twice is encoded twice."""
    starts = np.flatnonzero(np.diff(pair, prepend=np.int64(0)))
    yield from (-1 - int(pair[start]) for start in starts if pair[start] < 0)
