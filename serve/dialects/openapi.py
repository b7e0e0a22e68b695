"""What answers look like, for the OpenAPI document. Nothing is checked against it at run time."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, create_model

DESCRIPTION = """Reranks with Qwen3-VL-Reranker. One server for the clients of Cohere, Jina, vLLM,
TEI, NIM, Voyage, Infinity, SGLang and DashScope: queries and documents are text, images, videos,
or any mix, and the instruction is free for each request and document."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


def _model(name: str, doc: str | None = None, /, **fields: Any) -> Any:
    """An object of these fields and perhaps more; a tuple has a field's default beside its type."""
    own: dict[str, Any] = {
        each: kind if isinstance(kind, tuple) else (kind, ...) for each, kind in fields.items()
    }
    return create_model(name, __base__=_Open, __doc__=doc, **own)


def _many(model: Any) -> Any:
    return list[model]


_FLOAT = float | None
_STR = (str | None, None)
_PLACE: dict[str, Any] = {"index": int, "relevance_score": _FLOAT}
_SCORED: dict[str, Any] = {"index": int, "score": _FLOAT}
_HEAD: dict[str, Any] = {"id": str, "object": str, "created": int, "model": str}
_META = dict[str, Any]

_Problem = _model("Problem", code=str, message=str)
_Text = _model("Text", text=str)
_RESULT = _PLACE | {
    "document": (_Text | str | None, None),
    "error": (_Problem | None, None),
    "truncated": (bool | None, None),
}
_Result = _model("Result", **_RESULT)
_DataResult = _model(
    "DataResult",
    "The same, for readers of `data`: the document is a string where it was sent as one.",
    **_RESULT,
    score=_FLOAT,
)
_Usage = _model("Usage", prompt_tokens=int, completion_tokens=int, total_tokens=int)
RerankAnswer = _model(
    "RerankAnswer",
    **_HEAD,
    results=_many(_Result),
    data=_many(_DataResult),
    usage=_Usage,
    meta=_META,
)
_Ranking = _model("Ranking", index=int, logit=_FLOAT)
NimAnswer = _model(
    "NimAnswer",
    "What a request with `passages` gets.",
    rankings=_many(_Ranking),
    usage=_Usage,
    meta=_META,
)
_TeiResult = _model("TeiResult", **_SCORED, text=_STR)
ShapedAnswer: Any = RerankAnswer | _many(_TeiResult) | NimAnswer
SglangAnswer: Any = _many(_model("SglangResult", **_SCORED, document=_STR))
_ScoreResult = _model("ScoreResult", index=int, object=str, score=_FLOAT)
ScoreAnswer = _model("ScoreAnswer", **_HEAD, data=_many(_ScoreResult), usage=_Usage)
_DashScopeOutput = _model("DashScopeOutput", results=_many(_Result))
DashScopeAnswer = _model(
    "DashScopeAnswer", output=_DashScopeOutput, usage=_Usage, meta=_META, request_id=str
)

_Mistake = _model("Mistake", message=str, type=str, param=str | None, code=str | None)
Failure = _model("Failure", error=_Mistake, message=str, detail=str, request_id=_STR)
_TeiFailure = _model("TeiFailure", "What a request with `texts` gets.", error=str, error_type=str)
ShapedFailure: Any = Failure | _TeiFailure
DashScopeFailure = _model("DashScopeFailure", message=str, code=_STR, request_id=_STR)


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


def responses(
    answer: Any, failure: Any = Failure, description: str = "Scores"
) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that scores, or embeds."""
    told = {"model": answer, "description": description}
    return {200: told, **failures(*_SENTENCES, model=failure)}


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
