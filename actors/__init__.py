"""The reranker: pairs in, scores out. Knows torch and transformers; knows no Ray and no HTTP."""

from actors.config import QueryOptions, RerankerConfig
from actors.data import CandidateSet, Content, PairScore, Video
from actors.errors import RerankError
from actors.reranker import Reranker

__all__ = [
    "CandidateSet",
    "Content",
    "PairScore",
    "QueryOptions",
    "RerankError",
    "Reranker",
    "RerankerConfig",
    "Video",
]
