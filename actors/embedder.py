"""An embedding model in one object: what a library user needs for the first stage."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from shardrank.actors.config import EmbeddingOptions, QueryOptions, RerankerConfig
from shardrank.actors.data import Content, Embedding, parse_or_error
from shardrank.actors.families.family import Role
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.scorer import Scorer
from shardrank.actors.sides import OpenSide


class Embedder:
    """Embeds queries and documents with a Qwen3-VL-Embedding or Qwen3-Embedding checkpoint.

    model: a checkpoint directory, a hub name, or a whole RerankerConfig; `settings` are the
    config's other fields. Raises ValueError on a bad checkpoint or setting.
    """

    def __init__(self, model: str | RerankerConfig, **settings: Any) -> None:
        if isinstance(model, str):
            model = RerankerConfig(model=model, **settings)
        elif settings:
            raise ValueError(f"give settings in the config, not beside it: {sorted(settings)}")
        model = replace(model, embedding=model.embedding or EmbeddingOptions())
        self.preprocessor = Preprocessor(model)
        self.scorer = Scorer(model)
        self.config = self.scorer.config

    def embed(
        self,
        contents: Sequence[Any],
        role: Role = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        **options: Any,
    ) -> np.ndarray:
        """(N, D) float32, unit vectors, so that a dot product is the cosine.

        contents: each a string, an image, or {"text", "image", "video"}, each one or many; or
            {"pdf", "page" or "pages"}.
        instruction: of a model for texts a query's alone. dimensions: the vector's first so many,
        a unit vector again. options: QueryOptions' fields. Raises the first RerankError;
        embed_contents returns them all.
        """
        if isinstance(contents, str | bytes | Mapping):
            raise ValueError(f"contents must be a list, got one {type(contents).__name__}")
        is_whole = isinstance(dimensions, int | None) and not isinstance(dimensions, bool)
        if not is_whole or (dimensions is not None and not 0 < dimensions <= self.dimensions):
            raise ValueError(f"dimensions must be 1 to {self.dimensions}, got {dimensions!r}")
        fitting = QueryOptions(**options)
        found = self.embed_contents(contents, role, instruction, fitting)
        for each in found:
            if each.error is not None:
                raise each.error
        vectors = [each.cut(dimensions).embedding for each in found]
        whole = [each for each in vectors if each is not None]
        return np.array(whole, np.float32).reshape(len(whole), dimensions or self.dimensions)

    @property
    def dimensions(self) -> int:
        """The width of a whole vector."""
        return self.scorer.dimensions

    def embed_contents(
        self,
        contents: Sequence[Any],
        role: Role = "document",
        instruction: str | None = None,
        options: QueryOptions | None = None,
    ) -> list[Embedding]:
        """One Embedding each, in order, packed together; one that fails holds its error."""
        if role not in get_args(Role):
            raise ValueError(f"role must be query or document, got {role!r}")
        texts = []
        for index, content in enumerate(contents):
            name = role if len(contents) == 1 else f"{role}[{index}]"
            side = OpenSide(parse_or_error(Content.parse, content, name), name)
            opened = self.preprocessor.open_text(side, role, instruction, options or QueryOptions())
            texts.append(opened)
        return self.scorer.embed([self.preprocessor.prepare_texts(texts)])[0]
