"""What answers look like, for the OpenAPI document. Nothing is checked against it at run time."""

from typing import Any

from pydantic import BaseModel, ConfigDict

DESCRIPTION = """Reranks with Qwen3-VL-Reranker. One server for the clients of Cohere, Jina, vLLM,
TEI, Voyage, Infinity, SGLang and DashScope: queries and documents are text, images, videos, or any
mix, and the instruction is free for each request and document."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Problem(_Open):
    code: str
    message: str


class Text(_Open):
    text: str


class Result(_Open):
    index: int
    relevance_score: float | None
    document: Text | str | None = None
    error: Problem | None = None
    truncated: bool | None = None


class Usage(_Open):
    prompt_tokens: int
    total_tokens: int


class RerankAnswer(_Open):
    id: str
    object: str
    created: int
    model: str
    results: list[Result]
    data: list[Result]
    usage: Usage
    meta: dict[str, Any]


class TeiResult(_Open):
    index: int
    score: float | None
    text: str | None = None


class SglangResult(_Open):
    index: int
    score: float | None
    document: str | None = None


class ScoreResult(_Open):
    index: int
    object: str
    score: float | None


class ScoreAnswer(_Open):
    id: str
    object: str
    created: int
    model: str
    data: list[ScoreResult]
    usage: Usage


class DashScopeAnswer(_Open):
    output: dict[str, Any]
    usage: Usage
    request_id: str


class Failure(_Open):
    """`error` is an object of message, type, param and code; for TEI's requests a sentence."""

    error: dict[str, Any] | str | None = None
    message: str | None = None
    detail: str | None = None
    request_id: str | None = None


_SENTENCES = {
    400: "A query or document that cannot be scored, or is too long and may not be cut",
    401: "No API key, or a wrong one",
    404: "Another model, where the server is strict",
    413: "The body is too large",
    422: "A field is missing, of the wrong type or out of range",
    429: "A key's limit, or no capacity left; Retry-After",
    503: "Starting, stopping, or a replica was lost; Retry-After",
    504: "Not finished in time",
}
UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": Failure, "description": _SENTENCES[503]}
}


def responses(answer: Any) -> dict[int | str, dict[str, Any]]:
    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": sentence}
        for status, sentence in _SENTENCES.items()
    }
    return {200: {"model": answer, "description": "Scores"}, **failures}
