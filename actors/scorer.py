"""The device half: prepared sets to scores, or to vectors. Holds the model; knows nothing of files
or prompts.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np
import torch

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import Embedding, PairScore
from shardrank.actors.errors import NonFiniteScore, OutOfMemory, RerankError
from shardrank.actors.model.checkpoint import adapter_of, resolve_checkpoint
from shardrank.actors.model.device import (
    HostCopy,
    choose_device,
    choose_dtype,
    compiles,
    is_out_of_memory,
    to_device,
)
from shardrank.actors.model.features import FeatureCache
from shardrank.actors.model.linear import supports_fp8
from shardrank.actors.model.model import RerankerModel, load_model
from shardrank.actors.model.vision import POSITIONS_BYTES
from shardrank.actors.model.warm_up import BATCH_TOKENS, sample_sets
from shardrank.actors.packing import (
    MIN_SHARED_TOKENS,
    PackedBatch,
    common_prefix_length,
    pack,
    sharing_keys,
)
from shardrank.actors.planner import PairCost, plan, set_costs
from shardrank.actors.prepared import PreparedPair, PreparedSet, Visual, VisualTable

logger = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 4_096
MAX_BATCH_TOKENS = 16_384
"""Enough to fill a GPU, and little enough that a chunk is several plans: the next one is packed
while one runs.
"""
_MEMORY_SHARE = 0.5
"""The share of the device memory free after loading that one plan's activations may take."""
_CACHE_SHARE = 0.2
"""The share of it for vision features, unless the config says how many bytes."""
_CPU_CACHE_BYTES = 1 << 30

T = TypeVar("T")

R = TypeVar("R")

Part = HostCopy | OutOfMemory
"""Results of some pairs, perhaps still being computed, or the error of one."""
Result = np.ndarray | RerankError
"""A pair's logit () or vector (hidden,), float32; or why there is none."""


def nothing(num_pairs: int) -> None:
    """Nobody waits."""


@dataclass(frozen=True, slots=True)
class PrefixStates:
    """Keys and values of a pair's first L tokens, which packing.sharing_keys names."""

    sharing_keys: np.ndarray  # (L,) int64
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # (L, kv_heads, D) key and value


@dataclass(frozen=True, slots=True)
class PlannedSets:
    """Sets with what is made of them without the device."""

    sets: Sequence[PreparedSet]
    pairs: Sequence[PreparedPair]  # of all sets, those that are no error
    visuals: Sequence[Visual]
    plans: Sequence[Sequence[int]]
    first: PackedBatch | None  # the first plan, packed


class Scorer:
    """Scores prepared sets on one device. Raises ValueError on a bad checkpoint or device.

    load: as load_model, which reads a checkpoint's files.
    """

    def __init__(
        self, config: RerankerConfig, load: Callable[..., RerankerModel] = load_model
    ) -> None:
        checkpoint = resolve_checkpoint(config, weights=load is load_model)
        self.config = config.resolve(checkpoint)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.device = choose_device(config.device)
        if config.quantization == "fp8" and not supports_fp8(self.device):
            raise ValueError(f"quantization fp8: {self.device} does not multiply fp8")
        self._load = partial(
            load,
            checkpoint,
            self.device,
            choose_dtype(config.dtype, self.device),
            is_fp8=config.quantization == "fp8",
            task=config.task,
            adapter=adapter_of(config),
        )
        self.is_compiled = compiles(config.compile, self.device)
        self._model = self._load(is_compiled=self.is_compiled)
        on_host = 0 if self.device.type == "cpu" else config.host_feature_cache_bytes
        free = None if self.device.type == "cpu" else torch.cuda.mem_get_info(self.device)[0]
        cache = config.feature_cache_bytes
        if cache is None:
            cache = _CPU_CACHE_BYTES if free is None else int(free * _CACHE_SHARE)
        self.vision_cache = FeatureCache(cache, on_host)
        self.max_batch_tokens = self._batch_tokens(free and free - cache - POSITIONS_BYTES)

    @property
    def dimensions(self) -> int:
        """The width of a last state, which is that of a vector."""
        return self._model.decoder.width

    def planned(self, sets: Sequence[PreparedSet]) -> PlannedSets:
        """What `score` begins with; while it scores others, another thread may do this."""
        pairs, visuals = _join(sets)
        plans: Sequence[Sequence[int]] = (
            [[index] for index in range(len(pairs))]
            if self.config.batch_invariant
            else plan(_costs(sets), self.max_batch_tokens)
        )
        first = pack([pairs[index] for index in plans[0]]) if plans else None
        return PlannedSets(sets, pairs, visuals, plans, first)

    @classmethod
    def warm(cls, config: RerankerConfig) -> "Scorer":
        """A scorer whose first forward takes no longer than its others."""
        scorer = cls(config)
        scorer.warm_up()
        return scorer

    def warm_up(self) -> None:
        """Score made-up pairs, on a GPU and where layers are compiled. Raises the error of a pair.

        Where the compiler fails, for want of a C compiler, say, this says so once, and loads the
        model again to run as it is.
        """
        if self.device.type == "cpu" and not self.is_compiled:
            return
        started = time.monotonic()
        try:
            self._rehearse()
        except Exception as error:  # a compiler's are of many kinds; a fault of ours comes again
            if not self.is_compiled:
                raise
            logger.warning("torch.compile fails here, going on without it: %s", _shown(error))
            self.is_compiled = False
            del self._model  # before the other takes as much memory
            self._model = self._load(is_compiled=False)
            self._rehearse()
        logger.info("warm after %.1f s", time.monotonic() - started)

    def _rehearse(self) -> None:
        configured, cache = self.max_batch_tokens, self.vision_cache
        self.max_batch_tokens, self.vision_cache = BATCH_TOKENS, cache.emptied()
        try:
            for sets in sample_sets(with_images=self._model.vision is not None):
                run = self.score if self._model.head is not None else self.embed
                for pair in sum(run(sets), []):
                    if pair.error is not None:
                        raise pair.error
        finally:
            self.max_batch_tokens, self.vision_cache = configured, cache

    @torch.inference_mode()
    def score(
        self,
        sets: Sequence[PreparedSet] | PlannedSets,
        progressed: Callable[[int], None] = nothing,
    ) -> list[list[PairScore]]:
        """One list a set, one PairScore a document, in input order.

        progressed is called after each forward that has come back from the device, with the number
        of its pairs: who waits can tell a long list from a device that hangs.
        """
        return self._each(sets, progressed, _scored)

    @torch.inference_mode()
    def embed(
        self,
        sets: Sequence[PreparedSet] | PlannedSets,
        progressed: Callable[[int], None] = nothing,
    ) -> list[list[Embedding]]:
        """One list a set, one Embedding a text, in input order, as `score`."""
        return self._each(sets, progressed, _embedded)

    def _each(
        self,
        sets: Sequence[PreparedSet] | PlannedSets,
        progressed: Callable[[int], None],
        made: Callable[[PreparedPair | RerankError, Result], R],
    ) -> list[list[R]]:
        """What is made of each pair and its result, of a pair that is an error and that error."""
        planned = sets if isinstance(sets, PlannedSets) else self.planned(sets)
        results = iter(self._results(planned, progressed))
        return [
            [made(pair, pair if isinstance(pair, RerankError) else next(results)) for pair in pairs]
            for pairs in (prepared.pairs for prepared in planned.sets)
        ]

    def _results(self, planned: PlannedSets, progressed: Callable[[int], None]) -> list[Result]:
        """Logits or vectors of all pairs in order. A plan's are read when the next is queued."""
        pairs, plans, packed = planned.pairs, planned.plans, planned.first
        results: list[Result] = []
        queued: list[Part] = []
        prefix: PrefixStates | None = None
        for indices, following in zip_longest(plans, plans[1:], fillvalue=()):
            chosen = [pairs[index] for index in indices]
            num_kept = 0
            if following and not self.config.batch_invariant:
                num_kept = _shared(chosen[-1], pairs[following[0]])
            before = queued
            queued, prefix = self._queue(chosen, planned.visuals, prefix, num_kept, packed)
            packed = None
            came = _read(before)
            results += came
            progressed(len(came))
        return results + _read(queued)

    def _queue(
        self,
        pairs: Sequence[PreparedPair],
        visuals: Sequence[Visual],
        prefix: PrefixStates | None,
        num_kept: int,
        packed: PackedBatch | None,
    ) -> tuple[list[Part], PrefixStates | None]:
        """One plan, and the states of its last pair's first num_kept tokens for the next one."""
        left: PrefixStates | None = None

        def forward(part: Sequence[PreparedPair]) -> HostCopy:
            nonlocal left
            kept = num_kept if part[-1] is pairs[-1] else 0
            batch = packed if len(part) == len(pairs) else None
            results, left = self._forward(part, visuals, prefix, kept, batch)
            return HostCopy(results)

        return halving(forward, pairs), left

    def _forward(
        self,
        pairs: Sequence[PreparedPair],
        visuals: Sequence[Visual],
        prefix: PrefixStates | None,
        num_kept: int,
        batch: PackedBatch | None = None,
    ) -> tuple[torch.Tensor, PrefixStates | None]:
        """(P,) logits or (P, hidden) vectors, float32, perhaps still being computed, and what is
        kept.

        batch: the pairs, if they are packed already.
        """
        num_kept = min(num_kept, pairs[-1].num_tokens - 1)
        if batch is None:
            batch = pack(pairs, prefix.sharing_keys if prefix else None)
        is_kept = num_kept >= MIN_SHARED_TOKENS
        features, feature_rows = self._features(batch, visuals)
        hidden, layers = self._model.decoder.last_hidden(
            batch,
            features,
            feature_rows,
            cached=prefix.layers if prefix else (),
            kept_rows=batch.path_rows(len(pairs) - 1, num_kept) if is_kept else None,
        )
        results = self._model.result(hidden)
        if not is_kept:
            return results, None
        return results, PrefixStates(sharing_keys(pairs[-1])[:num_kept], layers)

    def _features(
        self, batch: PackedBatch, visuals: Sequence[Visual]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Features (N, levels, hidden) of the batch's distinct visuals, and its tokens' rows."""
        if not len(batch.visual_rows):
            return None, None
        distinct, which = np.unique(batch.visual_index, return_inverse=True)
        used = [visuals[number] for number in distinct.tolist()]
        starts = np.cumsum([0, *(visual.num_tokens for visual in used)])[which]
        rows = to_device(starts + batch.visual_offset, self.device)
        return torch.cat(self._encoded(used)), rows

    def _encoded(self, visuals: Sequence[Visual]) -> list[torch.Tensor]:
        """Each visual's features, encoding those not in the cache."""
        found = [self.vision_cache.get(visual.key, self.device) for visual in visuals]
        missing = [index for index, features in enumerate(found) if features is None]
        together = 0 if self.config.batch_invariant else 4 * self.max_batch_tokens
        for part in _within(missing, visuals, together):
            assert self._model.vision is not None  # a model for texts is given no visuals
            encoded = self._model.vision.encode([visuals[index].pixels for index in part])
            for index, features in zip(part, encoded, strict=True):
                found[index] = features
                self.vision_cache.put(visuals[index].key, features)
        return [features for features in found if features is not None]

    def _batch_tokens(self, free: int | None) -> int:
        """Tokens of one plan. free: bytes on the device; None: on a CPU."""
        max_length = self.config.options.max_length
        assert max_length is not None
        configured = self.config.max_batch_tokens
        if configured is not None:
            if configured < max_length:
                raise ValueError(
                    f"max_batch_tokens must be at least max_length ({max_length}), got {configured}"
                )
            return configured
        if free is None:
            return CPU_BATCH_TOKENS
        fitting = int(free * _MEMORY_SHARE) // self._model.bytes_per_token
        return max(max_length, min(fitting, MAX_BATCH_TOKENS))


def halving(
    forward: Callable[[Sequence[PreparedPair]], T], pairs: Sequence[PreparedPair]
) -> list[T | OutOfMemory]:
    """`forward` on all pairs, on out-of-memory on each half, down to one pair's own error."""
    try:
        return [forward(pairs)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(pairs) == 1:
            return [OutOfMemory(f"a pair of {pairs[0].num_tokens} tokens does not fit: {error}")]
    logger.warning("out of memory with %d pairs, trying halves", len(pairs))
    torch.cuda.empty_cache()
    middle = len(pairs) // 2
    return halving(forward, pairs[:middle]) + halving(forward, pairs[middle:])


def _read(parts: Sequence[Part]) -> list[Result]:
    """Waits for the device."""
    results: list[Result] = []
    for part in parts:
        results += [part] if isinstance(part, OutOfMemory) else part.rows()
    return results


def _shown(error: Exception) -> str:
    """One line, of what the compiler itself raised."""
    inner = getattr(error, "inner_exception", error)
    return f"{type(inner).__name__}: {(str(inner).splitlines() or [''])[0][:300]}"


def _shared(left: PreparedPair, right: PreparedPair) -> int:
    return common_prefix_length(sharing_keys(left), sharing_keys(right))


def _counted(pair: PreparedPair | RerankError) -> dict[str, Any]:
    if isinstance(pair, RerankError):
        return {}
    return {
        "num_tokens": pair.num_tokens,
        "num_visual_tokens": pair.num_visual_tokens,
        "is_truncated": pair.is_truncated,
    }


def _scored(pair: PreparedPair | RerankError, result: Result) -> PairScore:
    unscored = PairScore(**_counted(pair))
    if isinstance(result, RerankError):
        return replace(unscored, error=result)
    logit = float(result)
    if not math.isfinite(logit):
        return replace(unscored, error=NonFiniteScore(f"the model's logit is {logit}"))
    return replace(unscored, logit=logit, score=float(torch.sigmoid(torch.tensor(logit))))


def _embedded(pair: PreparedPair | RerankError, result: Result) -> Embedding:
    unknown = Embedding(**_counted(pair))
    if isinstance(result, RerankError):
        return replace(unknown, error=result)
    if not np.isfinite(result).all() or not result.any():
        return replace(unknown, error=NonFiniteScore("the model's vector is zero or not finite"))
    return replace(unknown, embedding=result)


def _costs(sets: Sequence[PreparedSet]) -> list[PairCost]:
    return [
        cost
        for group, prepared in enumerate(sets)
        for cost in set_costs([p for p in prepared.pairs if isinstance(p, PreparedPair)], group)
    ]


def _join(sets: Sequence[PreparedSet]) -> tuple[list[PreparedPair], tuple[Visual, ...]]:
    """All pairs of all sets over one list of distinct visuals."""
    table = VisualTable()
    pairs: list[PreparedPair] = []
    for prepared in sets:
        index = np.array([*map(table.add, prepared.visuals), -1], dtype=np.int32)
        pairs += [
            replace(pair, visual_index=index[pair.visual_index])
            for pair in prepared.pairs
            if isinstance(pair, PreparedPair)
        ]
    return pairs, table.visuals


def _within(
    indices: Sequence[int], visuals: Sequence[Visual], max_patches: int
) -> Iterator[list[int]]:
    """Consecutive indices of visuals that stay within a number of patches, at least one each."""
    part: list[int] = []
    size = 0
    for index in indices:
        patches = 4 * visuals[index].num_tokens
        if part and size + patches > max_patches:
            yield part
            part, size = [], 0
        part.append(index)
        size += patches
    if part:
        yield part
