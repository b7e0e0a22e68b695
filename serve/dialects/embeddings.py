"""Requests for vectors and their answers: OpenAI's and vLLM's, TEI's, Cohere's.

EMBEDDINGS, at the end, is the table of the routes. No client knows a vector that is not there, so
that an input which cannot be embedded fails its request.
"""

import base64
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from shardrank.actors.data import Embedding
from shardrank.actors.families.family import Role
from shardrank.serve.dialects.answers import Naming
from shardrank.serve.dialects.requests import Limit
from shardrank.serve.errors import InvalidRequest

Strings = Annotated[list[str], Field(fail_fast=True)]
"""The first that is wrong ends it: errors of all would take gigabytes for a body of one."""
_DIGITS = 9
"""A component's decimal places in an answer: float32 has no more of a number under one."""


_QUERY = ("query", "search_query", "retrieval.query")
_DOCUMENT = ("document", "search_document", "passage", "retrieval.passage")
_NEITHER = ("classification", "clustering", "image", "separation", "text-matching")
"""What Cohere's, Jina's and NIM's clients call the side of an input."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants, in words that all dialects share.

    inputs: each a string, token ids, or an object that contents.py reads; name: what messages call
    them, to be formatted with their place. max_length: tokens of an input, if the request says so.
    truncates: one that is too long is cut, else an error.
    unknown: fields that nobody reads.
    """

    inputs: Sequence[Any]
    name: str
    model: str | None = None
    role: Role = "document"
    instruction: str | None = None
    dimensions: int | None = None
    max_length: int | None = None
    truncates: bool = False
    unknown: Sequence[str] = ()


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @property
    def unknown(self) -> list[str]:
        return list(self.model_extra or ())


def _either(name: str, other: str) -> Any:
    return Field(None, validation_alias=AliasChoices(name, other))


class OpenAIRequest(_Body):
    """OpenAI's and vLLM's: `input`, or the `messages` of a chat, which are one input. NIM's,
    Voyage's and Jina's have the same route, and fields that say which side is embedded.
    """

    model: str | None = None
    input: Any = None
    messages: list[Any] | None = None
    dimensions: Limit | None = _either("dimensions", "output_dimension")
    encoding_format: Literal["float", "base64"] | None = _either(
        "encoding_format", "embedding_type"
    )
    output_dtype: Literal["float"] | None = None
    input_type: str | None = _either("input_type", "task")
    instruction: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    user: Any = None

    def wanted(self) -> Wanted:
        if (self.input is None) == (self.messages is None):
            raise InvalidRequest("give either input or messages", param="input")
        instruction = self.instruction
        if self.messages is not None:
            system, content = _of_chat(self.messages)
            inputs, name, instruction = [content], "messages", instruction or system
        else:
            inputs, name = _listed(self.input), "input[{}]"
        return Wanted(
            inputs,
            name,
            self.model,
            role=_role_of(self.input_type, "input_type"),
            instruction=instruction,
            dimensions=self.dimensions,
            max_length=max(0, self.truncate_prompt_tokens or 0) or None,
            truncates=self.truncate_prompt_tokens is not None,
            unknown=self.unknown,
        )

    def answer(self, found: "Embedded", naming: Naming) -> Any:
        written = _base64 if self.encoding_format == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": written(vector)}
            for index, vector in enumerate(found.vectors)
        ]
        usage = {"prompt_tokens": found.num_tokens, "total_tokens": found.num_tokens}
        told: dict[str, Any] = {
            "object": "list",
            "data": data,
            "model": naming.model,
            "usage": usage,
        }
        told |= naming.cost(found.num_tokens)
        return told | ({"warnings": found.warnings} if found.warnings else {})


class TeiRequest(_Body):
    """TEI's /embed."""

    inputs: Any
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: str | None = None
    dimensions: Limit | None = None

    def wanted(self) -> Wanted:
        if self.normalize is False:
            raise InvalidRequest("normalize: vectors here have length one", param="normalize")
        if (self.truncation_direction or "right").lower() != "right":
            raise InvalidRequest(
                "truncation_direction: a text is cut at its end", param="truncation_direction"
            )
        return Wanted(
            _listed(self.inputs),
            "inputs[{}]",
            role=_role_of(self.prompt_name, "prompt_name"),
            dimensions=self.dimensions,
            truncates=bool(self.truncate),
        )

    def answer(self, found: "Embedded", naming: Naming) -> Any:
        return [_floats(vector) for vector in found.vectors]


class CohereRequest(_Body):
    """Cohere's v2: `texts`, `images` (data URLs), or `inputs` of content parts."""

    model: str | None = None
    input_type: str | None = None
    texts: Strings | None = None
    images: Strings | None = None
    inputs: list[Any] | None = None
    embedding_types: Strings | None = None
    output_dimension: Limit | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    truncate: str | None = None
    priority: Any = None

    def wanted(self) -> Wanted:
        given = {
            name: value
            for name in ("texts", "images", "inputs")
            if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            raise InvalidRequest("give one of texts, images and inputs", param="texts")
        ((name, values),) = given.items()
        if name == "images":
            values = [{"image": image} for image in values]
        others = [kind for kind in self.embedding_types or () if kind not in _WRITTEN]
        if others:
            raise InvalidRequest(
                f"embedding_types must be of {', '.join(_WRITTEN)}, got {others[0]!r}",
                param="embedding_types",
            )
        if (self.truncate or "END").upper() not in ("END", "NONE"):
            raise InvalidRequest("truncate must be END or NONE", param="truncate")
        return Wanted(
            values,
            f"{name}[{{}}]",
            self.model,
            role=_role_of(self.input_type, "input_type"),
            dimensions=self.output_dimension,
            max_length=self.max_tokens,
            truncates=(self.truncate or "END").upper() == "END",
            unknown=self.unknown,
        )

    def answer(self, found: "Embedded", naming: Naming) -> Any:
        kinds = self.embedding_types or ["float"]
        return {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type",
            "embeddings": {kind: [*map(_WRITTEN[kind], found.vectors)] for kind in kinds},
            "texts": self.texts or [],
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"input_tokens": found.num_tokens},
                "warnings": found.warnings,
            }
            | naming.cost(found.num_tokens),
        }


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a request gets: a vector an input, and what the answer says beside them."""

    embeddings: Sequence[Embedding]
    warnings: list[str]

    @property
    def vectors(self) -> list[np.ndarray]:
        return [each.embedding for each in self.embeddings if each.embedding is not None]

    @property
    def num_tokens(self) -> int:
        return sum(each.num_tokens for each in self.embeddings)


def _role_of(side: str | None, field: str) -> Role:
    """An input is a document, unless the request says which of the two it is."""
    named = (side or "document").lower()
    if named not in _QUERY + _DOCUMENT + _NEITHER:
        raise InvalidRequest(f"{field} must be query or document, got {side!r}", param=field)
    return "query" if named in _QUERY else "document"


def _listed(value: Any) -> list[Any]:
    """One input or several. A list of numbers is one, of token ids."""
    if not isinstance(value, list):
        return [value]
    return [value] if are_token_ids(value) else value


def are_token_ids(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(type(each) is int for each in value)


def _of_chat(messages: Sequence[Any]) -> tuple[str | None, dict[str, Any]]:
    """The instruction, which is the system's, and the content of all that a user says."""
    system: list[str] = []
    parts: list[Any] = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            roles = ", ".join(_ROLES)
            raise InvalidRequest(f"{place}.role must be one of {roles}", param=f"{place}.role")
        content = message.get("content")
        listed = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if not isinstance(listed, list):
            raise InvalidRequest(
                f"{place}.content must be a string or a list of parts", param=place
            )
        if message["role"] == "user":
            parts += listed
        elif message["role"] == "system":
            system += [str(each.get("text") or "") for each in listed if isinstance(each, dict)]
        elif any(isinstance(each, dict) and each.get("text") for each in listed):
            raise InvalidRequest(f"{place}: an assistant says nothing here", param=place)
    return "".join(system) or None, {"content": parts}


_ROLES = ("system", "user", "assistant")


def _floats(vector: np.ndarray) -> list[float]:
    return vector.astype(np.float64).round(_DIGITS).tolist()


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


_WRITTEN: dict[str, Callable[[np.ndarray], Any]] = {"float": _floats, "base64": _base64}


@dataclass(frozen=True, slots=True)
class EmbeddingDialect:
    """One way to ask for vectors; its request's class knows what is wanted, and the answer."""

    name: str
    paths: tuple[str, ...]
    request: type[Any]


EMBEDDINGS = (
    EmbeddingDialect("embeddings", ("/v1/embeddings", "/embeddings"), OpenAIRequest),
    EmbeddingDialect("tei_embed", ("/embed",), TeiRequest),
    EmbeddingDialect("v2_embed", ("/v2/embed",), CohereRequest),
)
