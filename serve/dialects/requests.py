"""Request bodies of all dialects: one superset for /rerank, one for /score, and DashScope's.

Every optional field accepts null, because clients send nulls. Unknown fields are kept, to be named
in the answer's warnings.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Side = str | dict[str, Any] | list[Any]
"""A query or document; serve/dialects/contents.py reads it."""

_Number = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)]
Document = Side | None | _Number
"""Null and numbers come from tables' cells and are their document's error."""

Sides = Annotated[list[Document], Field(fail_fast=True, json_schema_extra={"minItems": 1})]
"""The first that is wrong ends it: errors of all would take gigabytes for a body of one."""

_WholeNumber = Annotated[int, Field(strict=True)]
_Positive = Annotated[int, Field(strict=True, ge=1)]
_Fps = Annotated[float, Field(gt=0, le=1_000, allow_inf_nan=False)]


class MediaOptions(BaseModel):
    """`mm_processor_kwargs`: pixels are counted after decoding."""

    model_config = ConfigDict(extra="allow")

    min_pixels: _Positive | None = None
    max_pixels: _Positive | None = None
    total_pixels: _Positive | None = None
    fps: _Fps | None = None
    max_frames: _Positive | None = None


class Options(BaseModel):
    """What rerank and score requests have in common."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = Field(None, description="Any name is accepted unless the server is strict")
    instruction: str | None = Field(None, description="What makes a document relevant")
    instruct: str | None = Field(None, description="The same, as DashScope and SGLang call it")
    max_tokens_per_doc: _Positive | None = Field(None, description="Of a document's text")
    max_tokens_per_query: _Positive | None = None
    truncate_prompt_tokens: Annotated[int, Field(strict=True, ge=-1)] | None = Field(
        None, description="Tokens of a whole pair; -1: the model's own limit"
    )
    truncation: bool | None = Field(None, description="false: a pair that is too long is an error")
    truncate: bool | str | None = Field(None, description="The same, as TEI calls it")
    truncation_side: Literal["left", "right"] | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    use_activation: bool | None = Field(None, description="false: the logit, not the score")
    activation: bool | None = None
    raw_scores: bool | None = Field(None, description="true: the logit (TEI, Infinity)")
    mm_processor_kwargs: MediaOptions | None = None
    fps: _Fps | None = None
    max_frames: _Positive | None = None
    on_error: Literal["fail", "null"] | None = Field(
        None, description="A document that cannot be scored: fails all, or has a null score"
    )
    priority: int | None = None
    user: str | None = None
    request_id: str | None = None

    @property
    def is_raw(self) -> bool:
        return bool(self.raw_scores) or self.use_activation is False or self.activation is False

    @property
    def may_truncate(self) -> bool:
        """Clients say it as a boolean or as NONE, START, END; silence truncates, as officially."""
        if isinstance(self.truncate, str):
            return self.truncate.upper() not in ("NONE", "FALSE")
        return self.truncation is not False and self.truncate is not False

    @property
    def keeps_the_end(self) -> bool:
        side = self.truncation_side or self.truncation_direction or "right"
        return side.lower() == "left" or str(self.truncate).upper() == "START"

    @property
    def media(self) -> MediaOptions:
        """mm_processor_kwargs, with the request's own fps and max_frames over them."""
        own = {"fps": self.fps, "max_frames": self.max_frames}
        base = self.mm_processor_kwargs or MediaOptions()
        return base.model_copy(update={key: value for key, value in own.items() if value})

    @property
    def unknown_fields(self) -> list[str]:
        inner = self.mm_processor_kwargs
        nested = [f"mm_processor_kwargs.{name}" for name in (inner and inner.model_extra) or ()]
        return [*(self.model_extra or ()), *nested]


class RerankRequest(Options):
    """The superset of Cohere's, Jina's, vLLM's, Voyage's, TEI's, SGLang's and Infinity's."""

    query: Side | None
    documents: Sides | None = Field(None, description="In every dialect but TEI's")
    texts: Sides | None = Field(None, description="TEI's documents: the answer is TEI's too")
    top_n: _WholeNumber | None = Field(None, ge=0, description="null, 0 or more than n: all")
    top_k: _WholeNumber | None = Field(None, ge=0, description="The same, as Voyage calls it")
    return_documents: bool | None = None
    return_text: bool | None = Field(None, description="TEI's return_documents")
    rank_fields: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Cohere v1: fields that count"
    )
    max_chunks_per_doc: int | None = Field(None, description="Accepted and not used: no chunks")

    @model_validator(mode="after")
    def _has_documents(self) -> "RerankRequest":
        if (self.documents is None) == (self.texts is None):
            raise ValueError("give documents (or, as TEI does, texts), and not both")
        return self

    @property
    def is_tei(self) -> bool:
        return self.documents is None

    @property
    def sides(self) -> list[Document]:
        return self.texts if self.documents is None else self.documents  # type: ignore[return-value]

    @property
    def limit(self) -> int | None:
        """How many results are wanted; None: all."""
        return self.top_n or self.top_k or None


class ScoreRequest(Options):
    """vLLM's /score: one of the four pairs of fields; 1:1, 1:N or N:N."""

    queries: Side | None = None
    documents: Side | None = None
    items: Side | None = None
    data_1: Side | None = None
    data_2: Side | None = None
    text_1: Side | None = None
    text_2: Side | None = None

    @model_validator(mode="after")
    def _has_one_pair_of_fields(self) -> "ScoreRequest":
        given = [
            pair for pair in _SCORE_FIELDS if all(getattr(self, name) is not None for name in pair)
        ]
        if len(given) != 1:
            raise ValueError(
                "give queries and documents (or queries and items, data_1 and data_2, "
                "text_1 and text_2)"
            )
        return self

    @property
    def fields(self) -> tuple[str, str]:
        """The names of the queries' field and of the documents'."""
        return self._given[0]

    @property
    def _given(self) -> list[tuple[str, str]]:
        return [
            pair for pair in _SCORE_FIELDS if all(getattr(self, name) is not None for name in pair)
        ]


_SCORE_FIELDS = (
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
    ("text_1", "text_2"),
)


class DashScopeInput(BaseModel):
    query: Side | None
    documents: Sides


class DashScopeParameters(BaseModel):
    model_config = ConfigDict(extra="allow")

    top_n: _WholeNumber | None = Field(None, ge=0)
    return_documents: bool | None = None
    instruct: str | None = None
    fps: _Fps | None = None


class DashScopeRequest(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model: str | None = None
    input: DashScopeInput
    parameters: DashScopeParameters | None = None

    @field_validator("parameters")
    @classmethod
    def _never_null(cls, value: DashScopeParameters | None) -> DashScopeParameters:
        return value or DashScopeParameters()

    def as_rerank(self) -> RerankRequest:
        parameters = self.parameters or DashScopeParameters()
        return RerankRequest(
            model=self.model,
            query=self.input.query,
            documents=self.input.documents,
            top_n=parameters.top_n,
            return_documents=bool(parameters.return_documents),
            instruct=parameters.instruct,
            fps=parameters.fps,
        )
