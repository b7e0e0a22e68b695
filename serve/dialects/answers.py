"""Scores and errors in each dialect's own words. Plain data in, JSON-ready data out.

How an error looks is chosen by the path and, for TEI, by the body's shape.
"""

import time
import uuid
from collections.abc import Mapping
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
        """The cost of a request; {}: no price was set."""
        if self.price_per_million_tokens is None:
            return {}
        return {"cost": scored.num_tokens * self.price_per_million_tokens / 1e6}


def ranked(scored: Scored, request: RerankRequest) -> list[int]:
    """Indices, best first, failed ones last, equal ones in input order; as many as are wanted."""

    def place(index: int) -> tuple[bool, float, int]:
        logit = scored.pairs[index].logit
        return (logit is None, 0.0 if logit is None else -logit, index)

    kept = [index for index, pair in enumerate(scored.pairs) if not _is_below(pair, request)]
    return sorted(kept, key=place)[: request.limit]


def _is_below(pair: PairScore, request: RerankRequest) -> bool:
    """A score under the one that the client set. What has none is told of."""
    value, least = value_of(pair, request.is_raw), request.least_score
    return least is not None and value is not None and value < least


def left_out(scored: Scored, request: RerankRequest) -> dict[str, int]:
    """How many results are below the least score; {}: none was set."""
    if request.least_score is None:
        return {}
    return {"num_below_min_score": sum(_is_below(pair, request) for pair in scored.pairs)}


def value_of(pair: PairScore, is_raw: bool) -> float | None:
    return pair.logit if is_raw else pair.score


def canonical(
    scored: Scored, request: RerankRequest, naming: Naming, returns_documents: bool
) -> dict[str, Any]:
    """What the clients of Cohere, Jina, vLLM, Voyage, Together, Pinecone and Mixedbread read.

    Infinity's own tells itself by raw_scores, which it always sends, and checks `object`.
    """
    results = _results(scored, request, returns_documents)
    answer = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list" if request.raw_scores is None else "rerank",
        "created": int(time.time()),
        "model": naming.model,
        "results": results,
        "data": [_data(result, request) for result in results],
        "usage": usage(scored) | {"rerank_units": _search_units(scored)},
        "meta": _meta(scored, naming) | left_out(scored, request),
    }
    if request.documents_field == "input":
        own = {"top_k": len(results), "return_input": bool(request.return_input)}
        return answer | own
    return answer


def _data(result: dict[str, Any], request: RerankRequest) -> dict[str, Any]:
    """A result as Voyage has it, whose documents are strings, with Pinecone's name of a score.

    A document that was sent as an object comes back as one; Mixedbread's is `input` too.
    """
    item = result | {"score": result["relevance_score"]}
    if "document" not in result:
        return item
    if request.documents_field == "input":
        return item | {"object": "rank_result", "input": result["document"]["text"]}
    if not isinstance(request.sides[result["index"]], Mapping):
        item["document"] = result["document"]["text"]
    return item


def weaviate(scored: Scored, request: RerankRequest) -> dict[str, Any]:
    """What Weaviate's module reads beside the canonical answer: in input order, always all."""
    return {
        "scores": [
            {"document": text or "", "score": value_of(pair, request.is_raw)}
            for pair, text in zip(scored.pairs, scored.texts, strict=True)
        ]
    }


def nim(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    rankings = [
        {"index": index, "logit": value_of(scored.pairs[index], request.is_raw)}
        | _failure(scored.pairs[index])
        | _truncation(scored.pairs[index])
        for index in ranked(scored, request)
    ]
    return {
        "rankings": rankings,
        "usage": usage(scored),
        "meta": _meta(scored, naming) | left_out(scored, request),
    }


def infinity(
    scored: Scored, request: RerankRequest, naming: Naming, returns_documents: bool
) -> dict[str, Any]:
    """The canonical answer with documents as strings."""
    answer = canonical(scored, request, naming, returns_documents)
    answer["object"] = "rerank"
    for result in (*answer["results"], *answer["data"]):
        if isinstance(result.get("document"), Mapping):
            result["document"] = result["document"]["text"]
    return answer


def tei(scored: Scored, request: RerankRequest) -> list[dict[str, Any]]:
    """A bare list, of all unless a client says how many: LiteLLM's does."""
    return [
        {"index": index, "score": value_of(scored.pairs[index], request.is_raw)}
        | ({"text": scored.texts[index]} if request.return_text else {})
        | _failure(scored.pairs[index])
        for index in ranked(scored, request)
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
        for index in ranked(scored, request)
    ]


def headers(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, str]:
    """Usage and cost beside a bare list, named as TEI names what it computed."""
    return (
        {
            "x-compute-tokens": str(scored.num_tokens),
            "x-compute-characters": str(scored.num_characters),
        }
        | {f"x-compute-{name}": f"{cost:.12g}" for name, cost in naming.cost(scored).items()}
        | {f"x-{k.replace('_', '-')}": str(n) for k, n in left_out(scored, request).items()}
    )


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
        "meta": _meta(scored, naming) | left_out(scored, request),
        "request_id": request_id,
    }


def usage(scored: Scored) -> dict[str, int]:
    """Tokens that the model read, a pair's query counted for each of its documents."""
    tokens = {
        "prompt_tokens": scored.num_tokens,
        "completion_tokens": 0,
        "total_tokens": scored.num_tokens,
    }
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
    for index in ranked(scored, request):
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
    return {
        "api_version": {"version": "2"},
        "server_version": naming.version,
        "billed_units": {"search_units": _search_units(scored), "total_tokens": tokens},
        "tokens": {"input_tokens": tokens, "output_tokens": 0},
        "warnings": scored.warnings,
    } | naming.cost(scored)


def _search_units(scored: Scored) -> int:
    return ceil(len(scored.pairs) / _DOCUMENTS_OF_A_SEARCH_UNIT)


_TEI_TYPES = {
    400: "Empty",
    401: "Validation",
    413: "Validation",
    415: "Validation",
    422: "Validation",
    429: "Overloaded",
    503: "Unhealthy",
}
DASHSCOPE_PATH = "/api/v1/services/rerank/text-rerank/text-rerank"
SHAPED_PATHS = (
    "/rerank",
    "/v1/rerank",
    "/reranking",
    "/v1/reranking",
    "/ranking",
    "/v1/ranking",
)
"""Where several dialects meet, and a request's body says which one it speaks."""


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
    """TEI shares its paths with others; its requests have `texts`."""
    return path in SHAPED_PATHS and isinstance(body, dict) and "texts" in body
