"""What the job needs of the reranker: two classes that each worker calls with the config."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from actors.config import QueryOptions, RerankerConfig
from actors.data import Content, PairScore
from actors.errors import RerankError


class PreparedPairs(Protocol):
    """What a preprocessor returns for some pairs (actors' PreparedSet)."""

    @property
    def num_pairs(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def only(self, index: int) -> "PreparedPairs": ...


class OpenedQuery(Protocol):
    @property
    def size_bytes(self) -> int:
        """What is decoded of it so far."""
        ...


Watch = Callable[[], AbstractContextManager[object]]
"""What reading a side is done within."""


class PreprocessorLike(Protocol):
    """Sides are opened one by one, read when their first pair is prepared, and read once."""

    def open_query(
        self,
        query: Content | RerankError,
        instruction: str | None,
        options: QueryOptions,
        watch: Watch,
    ) -> OpenedQuery: ...
    def open_document(
        self, document: Content | RerankError, name: str, watch: Watch = ...
    ) -> Any: ...
    def prepare_pairs(self, pairs: Iterable[tuple[Any, Any]]) -> Any: ...


class ScorerLike(Protocol):
    """One with a `vision_cache` that has `num_hits` and `num_misses` has them in the summary."""

    def score(self, sets: list[Any]) -> list[list[PairScore]]: ...


@dataclass(frozen=True, slots=True)
class Engine:
    preprocessor: Callable[[RerankerConfig], PreprocessorLike]
    scorer: Callable[[RerankerConfig], ScorerLike]
