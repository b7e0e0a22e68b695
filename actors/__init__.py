"""The models: pairs in, scores out; or texts in, vectors out. Knows no Ray and no HTTP."""

from typing import TYPE_CHECKING, Any

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.data import CandidateSet, Content, Embedding, PairScore, Video
from shardrank.actors.errors import RerankError

if TYPE_CHECKING:
    from shardrank.actors.embedder import Embedder
    from shardrank.actors.reranker import Reranker

__all__ = [
    "CandidateSet",
    "Content",
    "Embedder",
    "Embedding",
    "PairScore",
    "QueryOptions",
    "RerankError",
    "Reranker",
    "RerankerConfig",
    "Video",
]


def __getattr__(name: str) -> Any:
    """Both bring torch: seconds, which a worker that only reads or writes need not wait."""
    if name == "Embedder":
        from shardrank.actors.embedder import Embedder

        return Embedder
    if name == "Reranker":
        from shardrank.actors.reranker import Reranker

        return Reranker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
