"""This project's engine: candidate sets whole, packed, prefixes and images shared; or pair by pair,
with nothing packed and nothing shared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.checkpoints.random_weights import is_random, load_random
from bench.peers.protocol import CandidateSet, Peer, PeerSettings
from shardrank.actors import CandidateSet as Parsed
from shardrank.actors import Reranker
from shardrank.actors.model.model import load_model
from shardrank.actors.preprocessor import Preprocessor


class Ours(Peer):
    label = "ours"
    work = "needed"

    def __init__(self, settings: PeerSettings, **others: Any) -> None:
        self.reranker = Reranker(
            settings.model,
            load=load_random if is_random(Path(settings.model)) else load_model,
            device=settings.device,
            dtype=settings.dtype,
            num_threads=settings.threads,
            max_batch_tokens=settings.max_batch_tokens,
            **settings.extra,
            **others,
        )
        self.reranker.scorer.warm_up()

    def forget(self) -> None:
        """Drop vision features, decoded pixels and tokenised texts."""
        scorer = self.reranker.scorer
        scorer.vision_cache = scorer.vision_cache.emptied()
        self.reranker.preprocessor = Preprocessor(self.reranker.config)

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        return scores_of(
            self.reranker, [Parsed.parse(one["query"], one["documents"]) for one in sets]
        )


def scores_of(reranker: Reranker, sets: list[Parsed]) -> list[list[float]]:
    """Raises a pair's error: there is none to expect."""
    results = reranker.score_sets(sets)
    errors = [pair.error for pairs in results for pair in pairs if pair.error is not None]
    if errors:
        raise errors[0]
    return [[pair.score for pair in pairs if pair.score is not None] for pairs in results]


class OursOne(Ours):
    label = "ours, pair by pair"
    work = "one_by_one"

    def __init__(self, settings: PeerSettings) -> None:
        super().__init__(settings, feature_cache_bytes=0)

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        scored = super().score
        return [
            [scored([one | {"documents": [document]}])[0][0] for document in one["documents"]]
            for one in sets
        ]
