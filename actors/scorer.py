"""The device half: prepared sets to scores. Holds the model; knows nothing of files or prompts."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from actors.checkpoint import resolve_checkpoint
from actors.config import RerankerConfig
from actors.data import PairScore
from actors.errors import NonFiniteScore, OutOfMemory, RerankError
from actors.features import FeatureCache
from actors.model import load_model
from actors.packing import PackedBatch, pack
from actors.planner import PairCost, plan, set_costs
from actors.prepared import PreparedPair, PreparedSet, Visual

logger = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 4_096
MAX_BATCH_TOKENS = 65_536
_MEMORY_SHARE = 0.5
"""Of the device memory free after loading, the share that one plan's activations may take."""


class Scorer:
    """Scores prepared sets on one device. Raises ValueError on a bad checkpoint or device."""

    def __init__(self, config: RerankerConfig) -> None:
        checkpoint = resolve_checkpoint(config.model, config.revision)
        self.config = config.resolve(checkpoint)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.device = choose_device(config.device)
        self._model = load_model(checkpoint, self.device, choose_dtype(config.dtype, self.device))
        self.vision_cache = FeatureCache(config.feature_cache_bytes)
        self.max_batch_tokens = self._batch_tokens()

    @torch.inference_mode()
    def score(self, sets: Sequence[PreparedSet]) -> list[list[PairScore]]:
        """One list a set, one PairScore a document, in input order."""
        scores = [[_unscored(pair) for pair in prepared.pairs] for prepared in sets]
        places = [
            (set_index, pair_index)
            for set_index, prepared in enumerate(sets)
            for pair_index, pair in enumerate(prepared.pairs)
            if isinstance(pair, PreparedPair)
        ]
        if not places:
            return scores
        pairs, visuals = _join(sets)
        for indices in plan(_costs(sets), self.max_batch_tokens):
            logits = self._logits_of([pairs[index] for index in indices], visuals)
            for index, logit in zip(indices, logits, strict=True):
                set_index, pair_index = places[index]
                unscored = scores[set_index][pair_index]
                scores[set_index][pair_index] = _scored(unscored, logit)
        return scores

    def _logits_of(
        self, pairs: Sequence[PreparedPair], visuals: Sequence[Visual]
    ) -> list[float | RerankError]:
        return halving(lambda part: self._forward(part, visuals), pairs)

    def _forward(self, pairs: Sequence[PreparedPair], visuals: Sequence[Visual]) -> list[float]:
        batch, used = _packed(pairs, visuals)
        features = self._features(used) if used else None
        hidden = self._model.decoder.last_hidden(batch, features)
        return (hidden.float() @ self._model.head).tolist()

    def _features(self, visuals: Sequence[Visual]) -> torch.Tensor:
        """(N, levels, hidden) of the visuals end to end, encoding those not in the cache."""
        found = [self.vision_cache.get(visual.key) for visual in visuals]
        missing = [index for index, features in enumerate(found) if features is None]
        for part in _within(missing, visuals, 4 * self.max_batch_tokens):
            encoded = self._model.vision.encode([visuals[index].pixels for index in part])
            for index, features in zip(part, encoded, strict=True):
                found[index] = features
                self.vision_cache.put(visuals[index].key, features)
        return torch.cat([features for features in found if features is not None])

    def _batch_tokens(self) -> int:
        max_length = self.config.options.max_length
        assert max_length is not None
        configured = self.config.max_batch_tokens
        if configured is not None:
            if configured < max_length:
                raise ValueError(
                    f"max_batch_tokens must be at least max_length ({max_length}), got {configured}"
                )
            return configured
        if self.device.type != "cuda":
            return CPU_BATCH_TOKENS
        free, _ = torch.cuda.mem_get_info(self.device)
        fitting = int(free * _MEMORY_SHARE) // self._model.bytes_per_token
        return max(max_length, min(fitting, MAX_BATCH_TOKENS))


def choose_device(name: str) -> torch.device:
    """The device of a name, "auto" being CUDA where there is one. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def halving(
    forward: Callable[[Sequence[PreparedPair]], list[float]], pairs: Sequence[PreparedPair]
) -> list[float | RerankError]:
    """`forward` on all pairs, on out-of-memory on each half, down to one pair's own error."""
    try:
        return list(forward(pairs))
    except torch.OutOfMemoryError as error:
        if len(pairs) == 1:
            return [OutOfMemory(f"a pair of {pairs[0].num_tokens} tokens does not fit: {error}")]
    logger.warning("out of memory with %d pairs, trying halves", len(pairs))
    torch.cuda.empty_cache()
    middle = len(pairs) // 2
    return halving(forward, pairs[:middle]) + halving(forward, pairs[middle:])


def _unscored(pair: PreparedPair | RerankError) -> PairScore:
    if isinstance(pair, RerankError):
        return PairScore(error=pair)
    return PairScore(
        num_tokens=pair.num_tokens,
        num_visual_tokens=pair.num_visual_tokens,
        is_truncated=pair.is_truncated,
    )


def _scored(unscored: PairScore, logit: float | RerankError) -> PairScore:
    if isinstance(logit, RerankError):
        return replace(unscored, error=logit)
    if not math.isfinite(logit):
        return replace(unscored, error=NonFiniteScore(f"the model's logit is {logit}"))
    return replace(unscored, logit=logit, score=float(torch.sigmoid(torch.tensor(logit))))


def _costs(sets: Sequence[PreparedSet]) -> list[PairCost]:
    return [
        cost
        for group, prepared in enumerate(sets)
        for cost in set_costs([p for p in prepared.pairs if isinstance(p, PreparedPair)], group)
    ]


def _join(sets: Sequence[PreparedSet]) -> tuple[list[PreparedPair], list[Visual]]:
    """All pairs of all sets over one list of distinct visuals."""
    index: dict[bytes, int] = {}
    visuals: list[Visual] = []
    pairs: list[PreparedPair] = []
    for prepared in sets:
        renumbered = []
        for visual in prepared.visuals:
            renumbered.append(index.setdefault(visual.key, len(visuals)))
            if renumbered[-1] == len(visuals):
                visuals.append(visual)
        table = np.array([*renumbered, -1], dtype=np.int32)
        pairs += [
            replace(pair, visual_index=table[pair.visual_index])
            for pair in prepared.pairs
            if isinstance(pair, PreparedPair)
        ]
    return pairs, visuals


def _packed(
    pairs: Sequence[PreparedPair], visuals: Sequence[Visual]
) -> tuple[PackedBatch, list[Visual]]:
    """The pairs packed, and those of the visuals that they use, in the batch's order."""
    used = np.unique(np.concatenate([pair.visual_index for pair in pairs]))
    used = used[used >= 0]
    table = np.full(len(visuals) + 1, -1, dtype=np.int32)
    table[used] = np.arange(len(used), dtype=np.int32)
    chosen = [visuals[index] for index in used]
    sizes = [visual.num_tokens for visual in chosen]
    local = [replace(pair, visual_index=table[pair.visual_index]) for pair in pairs]
    return pack(local, sizes), chosen


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
