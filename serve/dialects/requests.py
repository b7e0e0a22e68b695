"""A request's body: the superset of what rerank clients send. It is read in a thread: a large one
takes seconds, which the event loop of all callers has not.

Every optional field accepts null, because clients send nulls. Unknown fields are kept, to be named
in the answer's warnings; fields that nobody reads are of any type.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from shardrank.serve.dialects.contents import listed, whole

Side = str | dict[str, Any] | list[Any]
"""A query or document; serve/dialects/contents.py reads it."""

_Number = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)]
Document = Side | None | _Number
"""Null and numbers come from tables' cells and are their document's error."""

Sides = Annotated[
    list[Document],
    Field(fail_fast=True, json_schema_extra={"minItems": 1}),
    BeforeValidator(listed),
]
"""The first that is wrong ends it: errors of all would take gigabytes for a body of one."""


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, got a boolean")
    return value


Lax = BeforeValidator(_no_boolean)
"""Numbers may be written as texts, and whole ones with a point: "2" and 2.0."""
Limit = Annotated[int, Field(ge=0), Lax]
_Positive = Annotated[int, Field(ge=1), Lax]
_Fps = Annotated[float, Field(gt=0, le=1_000, allow_inf_nan=False), Lax]
Score = Annotated[float, Field(allow_inf_nan=False), Lax]
_Text = Annotated[str, AfterValidator(whole)]


def _in_lower_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


_End = Annotated[Literal["left", "right"], BeforeValidator(_in_lower_case)]
"""A side, in any case: two spellings of one name would be no enumeration in a generated client."""


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
    instruction: _Text | None = Field(None, description="What makes a document relevant")
    instruct: _Text | None = Field(None, description="The same, as DashScope and SGLang call it")
    max_tokens_per_doc: _Positive | None = Field(None, description="Of a document's text")
    max_tokens_per_query: _Positive | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1), Lax] | None = Field(
        None, description="Tokens of a whole pair; -1: the model's own limit"
    )
    truncation: bool | None = Field(None, description="false: a pair that is too long is an error")
    truncate: bool | str | None = Field(None, description="The same, as TEI calls it")
    truncation_side: _End | None = None
    truncation_direction: _End | None = Field(None, description="The same, as TEI calls it")
    use_activation: bool | None = Field(None, description="false: the logit, not the score")
    activation: bool | None = None
    raw_scores: bool | None = Field(None, description="true: the logit (TEI, Infinity)")
    mm_processor_kwargs: MediaOptions | None = None
    fps: _Fps | None = None
    max_frames: _Positive | None = None
    on_error: Literal["fail", "null"] | None = Field(
        None, description="A document that cannot be scored: fails all, or has a null score"
    )
    priority: Any = None
    user: Any = None
    request_id: Any = None

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
        side = self.truncation_side or self.truncation_direction
        return side == "left" or str(self.truncate).upper() == "START"

    @property
    def cuts_texts(self) -> bool:
        """Whether texts may be cut by more than the official rule, which cuts a pair's end."""
        return bool(self.max_tokens_per_doc or self.max_tokens_per_query or self.keeps_the_end)

    @property
    def media(self) -> MediaOptions:
        """mm_processor_kwargs, with the request's own fps and max_frames over them."""
        own = {"fps": self.fps, "max_frames": self.max_frames}
        base = self.mm_processor_kwargs or MediaOptions()
        return base.model_copy(update={key: value for key, value in own.items() if value})

    @property
    def side_names(self) -> tuple[str, str]:
        """What messages call the query and the documents, to be formatted with their places."""
        raise NotImplementedError

    @property
    def lists(self) -> tuple[list[Any], list[Any]]:
        """The queries, one for all documents or one for each, and the documents."""
        raise NotImplementedError

    @property
    def sides_of_parts(self) -> list[str]:
        """Fields that are an object of several parts and are read as one side."""
        return []

    @property
    def unknown_fields(self) -> list[str]:
        inner = self.mm_processor_kwargs
        nested = [f"mm_processor_kwargs.{name}" for name in (inner and inner.model_extra) or ()]
        return [*(self.model_extra or ()), *nested]


class RerankRequest(Options):
    """The superset of what the clients of Cohere, Jina, vLLM, Voyage, TEI, NIM and others send.

    Documents stand in one of four fields, and which one says how the answer looks.
    """

    query: Side | None
    documents: Sides | None = Field(
        None, description="A list, one alone, or an object whose content is a list, a document each"
    )
    texts: Sides | None = Field(None, description="TEI's documents: the answer is TEI's too")
    passages: Sides | None = Field(None, description="NIM's documents: the answer is NIM's too")
    input: Sides | None = Field(None, description="Mixedbread's documents")
    top_n: Limit | None = Field(None, description="null, 0 or more than n: all")
    top_k: Limit | None = Field(None, description="The same, as Voyage calls it")
    min_score: Score | None = Field(None, description="Results below it are left out")
    score_threshold: Score | None = Field(None, description="The same")
    return_documents: bool | None = None
    return_text: bool | None = Field(None, description="TEI's return_documents")
    return_input: bool | None = Field(None, description="Mixedbread's return_documents")
    rank_fields: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Cohere v1: fields that count"
    )
    rank_property: Any = Field(
        None, alias="property", description="Weaviate's: the answer has its `scores` too"
    )
    max_chunks_per_doc: Any = Field(None, description="Accepted and not used: no chunks")

    @model_validator(mode="before")
    @classmethod
    def _of_llama_cpp(cls, values: Any) -> Any:
        """`texts: true` beside documents asks for TEI's answer."""
        if not isinstance(values, Mapping) or not isinstance(values.get("texts"), bool):
            return values
        if values["texts"]:
            return {**values, "texts": values.get("documents"), "documents": None}
        return {**values, "texts": None}

    @model_validator(mode="after")
    def _has_documents(self) -> "RerankRequest":
        if sum(getattr(self, name) is not None for name in _DOCUMENTS) != 1:
            raise ValueError(
                "give documents (or, as TEI does, texts, as NIM does, passages, "
                "as Mixedbread does, input), and one of them alone"
            )
        return self

    @property
    def documents_field(self) -> str:
        """The name of the field that the documents stand in."""
        return next(name for name in _DOCUMENTS if getattr(self, name) is not None)

    @property
    def is_raw(self) -> bool:
        """NIM's answers have logits alone."""
        return self.passages is not None or super().is_raw

    @property
    def is_of_weaviate(self) -> bool:
        return "rank_property" in self.model_fields_set

    @property
    def sides(self) -> list[Document]:
        return getattr(self, self.documents_field)

    @property
    def side_names(self) -> tuple[str, str]:
        return "query", f"{self.documents_field}[{{}}]"

    @property
    def lists(self) -> tuple[list[Any], list[Any]]:
        return [self.query], self.sides

    @property
    def least_score(self) -> float | None:
        return self.score_threshold if self.min_score is None else self.min_score

    @property
    def limit(self) -> int | None:
        """How many results are wanted; None: all."""
        return self.top_n or self.top_k or None


_DOCUMENTS = ("documents", "texts", "passages", "input")


class BodyRoute(APIRoute):
    """Hands FastAPI what it would make of the body itself: a checked value passes as it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(_ReadRequest(request, self.body_field))
            except HTTPException as error:  # what FastAPI makes of whatever `json` raises
                if isinstance(error.__cause__, RequestValidationError):
                    raise error.__cause__ from None
                raise

        return handler


class _ReadRequest(Request):
    def __init__(self, request: Request, field: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._request = request
        self._field = field

    async def body(self) -> bytes:
        """Kept by the request as it came, which is what handlers of errors are given."""
        return await self._request.body()

    async def json(self) -> Any:
        """Raises ValueError, RecursionError or RequestValidationError."""
        return await asyncio.to_thread(self._checked, await self.body())

    def _checked(self, body: bytes) -> Any:
        content = json.loads(body)
        value, errors = self._field.validate(content, loc=("body",))
        if errors:
            raise RequestValidationError(errors, body=content)
        return value
