"""The reranker as a library. `shardrank.jobs` is the job, `shardrank.serve` the endpoint.

`actors`, `jobs` and `serve` in here are links to the folders of those names beside this one, so
that a checkout can be imported as an installed package is, without an install.
"""

from typing import TYPE_CHECKING, Any

from shardrank import actors
from shardrank.actors import (
    CandidateSet,
    Content,
    Embedding,
    PairScore,
    QueryOptions,
    RerankerConfig,
    RerankError,
    Video,
    errors,
)

if TYPE_CHECKING:
    from shardrank.actors import Embedder, Reranker
    from shardrank.pipeline import Pipeline

__all__ = [
    "CandidateSet",
    "Content",
    "Embedder",
    "Embedding",
    "PairScore",
    "Pipeline",
    "QueryOptions",
    "RerankError",
    "Reranker",
    "RerankerConfig",
    "Video",
    "errors",
]


def __getattr__(name: str) -> Any:
    """Reranker, Embedder or Pipeline, when it is first asked for: it brings torch."""
    if name in ("Embedder", "Reranker"):
        return getattr(actors, name)
    if name == "Pipeline":
        from shardrank.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
