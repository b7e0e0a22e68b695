"""What the job needs of the reranker: two classes that each worker calls with the config."""

import pickle
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.data import Content, Embedding
from shardrank.actors.errors import RerankError
from shardrank.actors.model.checkpoint import checkpoint_outline
from shardrank.jobs.errors import JobError
from shardrank.jobs.outputs.scores import Result

if TYPE_CHECKING:
    from shardrank.actors.scorer import Scorer


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


Progressed = Callable[[int], None]
"""Told how many pairs came back since it was last told."""

Watch = Callable[[], AbstractContextManager[object]]
"""What reading a side is done within."""


class PreprocessorLike(Protocol):
    """Sides are opened one by one, read when their first pair is prepared, and read once.

    One with `videos`, as actors' VideoProcesses are, has the job's memory of lost decoders put into
    their `lost`.
    """

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
    """One with a `vision_cache` that has `num_hits` and `num_misses` has them in the summary.

    One with `planned` takes what that makes of sets in their place; it is called while others are
    scored. `progressed` is called at least as often as a device should come back.
    """

    def score(self, sets: list[Any], progressed: Progressed) -> Sequence[Sequence[Result]]: ...


@dataclass(frozen=True, slots=True)
class Engine:
    preprocessor: Callable[[RerankerConfig], PreprocessorLike]
    scorer: Callable[[RerankerConfig], ScorerLike]


def own_engine() -> Engine:
    """Its classes are imported by who calls them: torch takes seconds, which the driver spares."""
    return Engine(_preprocessor, _scorer)


def _preprocessor(config: RerankerConfig) -> PreprocessorLike:
    from shardrank.actors.preprocessor import Preprocessor

    return Preprocessor(config)


def _scorer(config: RerankerConfig) -> ScorerLike:
    from shardrank.actors.scorer import Scorer

    scorer = Scorer.warm(config)
    return scorer if config.embedding is None else _Embedding(scorer, config.embedding.dimensions)


class _Embedding:
    """A scorer whose results are vectors of the dimensions that are asked for."""

    def __init__(self, scorer: "Scorer", dimensions: int | None) -> None:
        self._scorer, self._dimensions = scorer, dimensions
        self.planned, self.vision_cache = scorer.planned, scorer.vision_cache

    def score(self, sets: list[Any], progressed: Progressed) -> list[list[Embedding]]:
        found = self._scorer.embed(sets, progressed)
        return [[each.cut(self._dimensions) for each in texts] for texts in found]


@dataclass(frozen=True, slots=True)
class PackedEngine:
    """An engine as cloudpickle has it: its modules are imported where it is unpacked, not where Ray
    reads it. What kills a process by being imported is then seen, as any other death.
    """

    content: bytes

    def unpacked(self) -> Engine:
        return pickle.loads(self.content)


def outline_of(config: RerankerConfig) -> str | None:
    """The outline of model and adapter where they are directories; a hub's has its commit."""
    folders = [Path(each) for each in (config.model, config.adapter) if each]
    return "\n".join(checkpoint_outline(each) for each in folders if each.is_dir()) or None


def check_outline(config: RerankerConfig, outline: str | None) -> None:
    """Raises JobError where this node's directory holds another model than the driver's: scores of
    one job have one model.
    """
    if outline is not None and outline_of(config) != outline:
        raise JobError(
            f"--model: {config.model} on {socket.gethostname()} is not what it was where the job "
            "was started; every node needs the same files"
        )
