"""What answers look like, for the OpenAPI document. Nothing is checked against it at run time."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

DESCRIPTION = """Reranks with Qwen3-VL-Reranker. One server for the clients of Cohere, Jina, vLLM,
TEI, NIM, Voyage, Infinity, SGLang and DashScope: queries and documents are text, images, videos,
or any mix, and the instruction is free for each request and document."""


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


class DataResult(Result):
    """The same, for readers of `data`: the document is a string where it was sent as one."""

    score: float | None


class Usage(_Open):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RerankAnswer(_Open):
    id: str
    object: str
    created: int
    model: str
    results: list[Result]
    data: list[DataResult]
    usage: Usage
    meta: dict[str, Any]


class Ranking(_Open):
    index: int
    logit: float | None


class NimAnswer(_Open):
    """What a request with `passages` gets."""

    rankings: list[Ranking]
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


class DashScopeOutput(_Open):
    results: list[Result]


class DashScopeAnswer(_Open):
    output: DashScopeOutput
    usage: Usage
    meta: dict[str, Any]
    request_id: str


class Mistake(_Open):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(_Open):
    error: Mistake
    message: str
    detail: str
    request_id: str | None = None


class TeiFailure(_Open):
    """What a request with `texts` gets."""

    error: str
    error_type: str


class DashScopeFailure(_Open):
    message: str
    code: str | None = None
    request_id: str | None = None


_SENTENCES = {
    400: "A body that cannot be read; a query or document that cannot be scored or is too long",
    401: "No API key, or a wrong one",
    404: "Another model, where the server is strict",
    413: "The body is too large",
    415: "The body is compressed",
    422: "A field is missing, of the wrong type or out of range",
    429: "A key's limit, or no capacity left; Retry-After",
    503: "Starting, stopping, or a replica was lost; Retry-After",
    504: "Not finished in time",
}


def responses(answer: Any, failure: Any = Failure) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that scores."""
    return {200: {"model": answer, "description": "Scores"}, **failures(*_SENTENCES, model=failure)}


def failures(*statuses: int, model: Any = Failure) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model, "description": _SENTENCES[status]} for status in statuses}


UNAVAILABLE = failures(503)
REFUSED = failures(401, 413, 429, 504)
"""What the gate answers on any path that is not open to all."""
METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    **REFUSED,
}


def add_security(app: FastAPI) -> None:
    """The keys in the document: any one of the headers that the gate reads."""
    describe = app.openapi
    schemes = {
        "Bearer": {"type": "http", "scheme": "bearer"},
        "Api-Key": {"type": "apiKey", "in": "header", "name": "Api-Key"},
        "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }

    def with_security() -> dict[str, Any]:
        document = describe()
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{name: []} for name in schemes]
        for path in ("/health", "/ready"):
            document["paths"][path]["get"]["security"] = []
        return document

    app.openapi = with_security  # type: ignore[method-assign]
