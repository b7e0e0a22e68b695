"""This project's engine: candidate sets whole, packed, prefixes and images shared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.protocol import CandidateSet, PeerSettings, serve

if TYPE_CHECKING:
    from shardrank.actors import PairScore, Reranker


class Ours:
    label = "ours"
    work = "needed"

    def __init__(self, settings: PeerSettings) -> None:
        self.reranker = make_reranker(settings)
        self.versions = versions()

    def forget(self) -> None:
        """Drops vision features, decoded pixels and tokenised texts."""
        scorer = self.reranker.scorer
        scorer.vision_cache = scorer.vision_cache.emptied()
        forget_inputs(self.reranker)

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        from shardrank.actors import CandidateSet as Parsed

        parsed = [Parsed.parse(one["query"], one["documents"], one["instruction"]) for one in sets]
        return [[score_of(pair) for pair in pairs] for pairs in self.reranker.score_sets(parsed)]


def make_reranker(settings: PeerSettings, **others: Any) -> Reranker:
    from bench.random_weights import is_random, load_random
    from shardrank.actors import Reranker
    from shardrank.actors.model.model import load_model

    reranker = Reranker(
        settings.model,
        load=load_random if is_random(Path(settings.model)) else load_model,
        device=settings.device,
        dtype=settings.dtype,
        num_threads=settings.threads,
        max_batch_tokens=settings.max_batch_tokens,
        **settings.extra,
        **others,
    )
    reranker.scorer.warm_up()
    return reranker


def forget_inputs(reranker: Reranker) -> None:
    """Gives the reranker a preprocessor that has seen nothing."""
    from shardrank.actors.preprocessor import Preprocessor

    reranker.preprocessor = Preprocessor(reranker.config)


def score_of(pair: PairScore) -> float:
    """A benchmark has no bad data, so a failed pair is a failed benchmark."""
    if pair.error is not None:
        raise pair.error
    assert pair.score is not None
    return pair.score


def versions() -> dict[str, str]:
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    serve(Ours)
