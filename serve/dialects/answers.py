"""Scores and errors in each dialect's own words. Plain data in, JSON-ready data out.

How an error looks is chosen by the path and, for TEI, by the body's shape.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from shardrank.actors.data import PairScore
from shardrank.serve.dialects.contents import echo_of
from shardrank.serve.dialects.requests import RerankRequest
from shardrank.serve.errors import ApiError
from shardrank.serve.service import Scored

_DOCUMENTS_OF_A_SEARCH_UNIT = 100
"""Cohere bills a query with up to 100 documents as one search unit."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What all answers of this server say about it."""

    model: str
    version: str
    price_per_million_tokens: float | None = None

    def cost(self, scored: Scored) -> dict[str, float]:
        """{}: no price was set."""
        if self.price_per_million_tokens is None:
            return {}
        return {"cost": scored.num_tokens * self.price_per_million_tokens / 1e6}


def ranked(pairs: Sequence[PairScore], limit: int | None = None) -> list[int]:
    """Indices, best first, failed ones last, equal ones in input order; at most `limit`."""

    def place(index: int) -> tuple[bool, float, int]:
        logit = pairs[index].logit
        return (logit is None, 0.0 if logit is None else -logit, index)

    return sorted(range(len(pairs)), key=place)[:limit]


def value_of(pair: PairScore, is_raw: bool) -> float | None:
    return pair.logit if is_raw else pair.score


def canonical(
    scored: Scored, request: RerankRequest, naming: Naming, returns_documents: bool
) -> dict[str, Any]:
    """What Cohere's, Jina's, vLLM's and Voyage's clients read."""
    results = _results(scored, request, returns_documents)
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": naming.model,
        "results": results,
        "data": results,
        "usage": usage(scored),
        "meta": _meta(scored, naming),
    }


def infinity(
    scored: Scored, request: RerankRequest, naming: Naming, returns_documents: bool
) -> dict[str, Any]:
    """As canonical, with documents as strings."""
    answer = canonical(scored, request, naming, returns_documents)
    answer["object"] = "rerank"
    for result in answer["results"]:
        if "document" in result:
            result["document"] = result["document"]["text"]
    return answer


def tei(scored: Scored, request: RerankRequest) -> list[dict[str, Any]]:
    """A bare list, of all unless a client says how many: LiteLLM's does."""
    return [
        {"index": index, "score": value_of(scored.pairs[index], request.is_raw)}
        | ({"text": scored.texts[index]} if request.return_text else {})
        | _failure(scored.pairs[index])
        for index in ranked(scored.pairs, request.limit)
    ]


def sglang(scored: Scored, request: RerankRequest) -> list[dict[str, Any]]:
    """A bare list; documents are echoed unless that is declined."""
    echoes = request.return_documents is not False
    return [
        {"index": index, "score": value_of(scored.pairs[index], request.is_raw)}
        | ({"document": scored.texts[index]} if echoes else {})
        | _failure(scored.pairs[index])
        | {
            "meta_info": {"prompt_tokens": scored.pairs[index].num_tokens}
            | _truncation(scored.pairs[index])
        }
        for index in ranked(scored.pairs, request.limit)
    ]


def headers(scored: Scored, naming: Naming) -> dict[str, str]:
    """Usage and cost beside a bare list, named as TEI names what it computed."""
    return {
        "x-compute-tokens": str(scored.num_tokens),
        "x-compute-characters": str(scored.num_characters),
    } | {f"x-compute-{name}": f"{cost:.12g}" for name, cost in naming.cost(scored).items()}


def scores(scored: Scored, is_raw: bool, naming: Naming) -> dict[str, Any]:
    """vLLM's /score: in input order."""
    data = [
        {"index": index, "object": "score", "score": value_of(pair, is_raw)}
        | _failure(pair)
        | _truncation(pair)
        for index, pair in enumerate(scored.pairs)
    ]
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": naming.model,
        "data": data,
        "usage": usage(scored),
        "meta": _meta(scored, naming),
    }


def dashscope(
    scored: Scored, request: RerankRequest, naming: Naming, request_id: str
) -> dict[str, Any]:
    return {
        "output": {"results": _results(scored, request, bool(request.return_documents))},
        "usage": usage(scored),
        "meta": _meta(scored, naming),
        "request_id": request_id,
    }


def usage(scored: Scored) -> dict[str, int]:
    """Tokens that the model read, a pair's query counted for each of its documents."""
    tokens = {"prompt_tokens": scored.num_tokens, "total_tokens": scored.num_tokens}
    visual = scored.num_visual_tokens
    if visual:
        tokens["visual_tokens"] = visual
    if visual and not scored.has_videos:
        tokens["image_tokens"] = visual
    if visual and not scored.has_images:
        tokens["video_tokens"] = visual
    return tokens


def _results(
    scored: Scored, request: RerankRequest, returns_documents: bool
) -> list[dict[str, Any]]:
    results = []
    for index in ranked(scored.pairs, request.limit):
        pair, text = scored.pairs[index], scored.texts[index]
        result: dict[str, Any] = {
            "index": index,
            "relevance_score": value_of(pair, request.is_raw),
        }
        if returns_documents and text is not None:
            result["document"] = echo_of(request.sides[index], text)
        results.append(result | _failure(pair) | _truncation(pair))
    return results


def _failure(pair: PairScore) -> dict[str, Any]:
    if pair.error is None:
        return {}
    return {"error": {"code": pair.error.code, "message": str(pair.error)}}


def _truncation(pair: PairScore) -> dict[str, bool]:
    """The document, or its query, was cut."""
    return {"truncated": True} if pair.is_truncated else {}


def _meta(scored: Scored, naming: Naming) -> dict[str, Any]:
    tokens = scored.num_tokens
    units = ceil(len(scored.pairs) / _DOCUMENTS_OF_A_SEARCH_UNIT)
    return {
        "api_version": {"version": "2"},
        "server_version": naming.version,
        "billed_units": {"search_units": units, "total_tokens": tokens},
        "tokens": {"input_tokens": tokens, "output_tokens": 0},
        "warnings": scored.warnings,
    } | naming.cost(scored)


_TEI_TYPES = {
    400: "Empty",
    401: "Validation",
    413: "Validation",
    422: "Validation",
    429: "Overloaded",
    503: "Unhealthy",
}
DASHSCOPE_PATH = "/api/v1/services/rerank/text-rerank/text-rerank"


def body_of(error: ApiError, path: str, request_id: str, is_tei: bool = False) -> dict[str, Any]:
    """One body serves the readers of `error`, `message` and `detail`."""
    message = str(error)
    if is_tei:
        return {"error": message, "error_type": _tei_type(error)}
    if path == DASHSCOPE_PATH:
        return {"code": error.code, "message": message, "request_id": request_id}
    return {
        "error": {
            "message": message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        },
        "message": message,
        "detail": message,
        "request_id": request_id,
    }


def _tei_type(error: ApiError) -> str:
    if error.status == 400 and error.code != "empty":
        return "Validation"
    return _TEI_TYPES.get(error.status, "Backend")


def is_tei(path: str, body: Any) -> bool:
    """TEI shares its path with others; its requests have `texts`."""
    return path == "/rerank" and isinstance(body, dict) and "texts" in body
