"""Both halves in one object: the three lines that a library user needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.data import CandidateSet, PairScore
from shardrank.actors.model.model import RerankerModel, load_model
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.scorer import Scorer


class Reranker:
    """Scores documents for a query with a Qwen3-VL-Reranker checkpoint.

    model: a checkpoint directory, a hub name, or a whole RerankerConfig; `settings` are the
    config's other fields. load: see Scorer. Raises ValueError on a bad checkpoint or setting.
    """

    def __init__(
        self,
        model: str | RerankerConfig,
        *,
        load: Callable[..., RerankerModel] = load_model,
        **settings: Any,
    ) -> None:
        if isinstance(model, str):
            model = RerankerConfig(model=model, **settings)
        elif settings:
            raise ValueError(f"give settings in the config, not beside it: {sorted(settings)}")
        self.preprocessor = Preprocessor(model)
        self.scorer = Scorer(model, load)
        self.config = self.scorer.config

    def score(
        self,
        query: Any,
        documents: Sequence[Any],
        instruction: str | None = None,
        **options: Any,
    ) -> list[float]:
        """Scores in [0, 1], one a document, in the documents' order.

        query and documents: a string, an image, or {"text", "image", "video"}, each one or many; or
            {"pdf", "page" or "pages"}.
        options: QueryOptions' fields. Raises the first RerankError; score_sets returns them all.
        """
        if isinstance(documents, str | bytes | Mapping):
            raise ValueError(f"documents must be a list, got one {type(documents).__name__}")
        candidates = CandidateSet.parse(query, documents, instruction, QueryOptions(**options))
        scores = self.score_sets([candidates])[0]
        for pair in scores:
            if pair.error is not None:
                raise pair.error
        return [pair.score for pair in scores if pair.score is not None]

    def score_sets(self, sets: Sequence[CandidateSet]) -> list[list[PairScore]]:
        """Results of many candidate sets, packed together; a failed pair holds its error."""
        return self.scorer.score([self.preprocessor.prepare(one) for one in sets])
