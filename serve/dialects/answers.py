"""Scores in each dialect's own words. Plain data in, JSON-ready data out.

DIALECTS, at the end, is the table of the routes that score: a new dialect is an entry of it.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from shardrank.actors.data import PairScore
from shardrank.serve.dialects import openapi
from shardrank.serve.dialects.bodies import DASHSCOPE_PATH, SHAPED_PATHS
from shardrank.serve.dialects.contents import echo_of
from shardrank.serve.dialects.requests import (
    DashScopeRequest,
    RerankRequest,
    ScoreRequest,
)
from shardrank.serve.dialects.work import Scored
from shardrank.serve.errors import InvalidRequest

_DOCUMENTS_OF_A_SEARCH_UNIT = 100
"""Cohere bills a query with up to 100 documents as one search unit."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What an answer says of this server, and the request's id."""

    model: str
    version: str
    price_per_million_tokens: float | None = None
    request_id: str = ""

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


def shaped(scored: Scored, request: RerankRequest, naming: Naming) -> Any:
    """The field of the documents decides: canonical; with `texts` TEI's, with `passages` NIM's.

    With `property` Weaviate's too; `input` is Mixedbread's, whose answer is canonical.
    """
    if request.documents_field == "texts":
        return tei(scored, request, naming)
    if request.documents_field == "passages":
        return nim(scored, request, naming)
    if request.documents_field == "input":
        return _canonical(scored, request, naming, bool(request.return_input))
    return canonical(scored, request, naming)


def canonical(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    """Canonical, texts echoed unless that is declined."""
    return _canonical(scored, request, naming, request.return_documents is not False)


def canonical_without_texts(
    scored: Scored, request: RerankRequest, naming: Naming
) -> dict[str, Any]:
    """Canonical, texts echoed if that is asked for."""
    return _canonical(scored, request, naming, bool(request.return_documents))


def _canonical(
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
        "meta": _meta(scored, naming, request),
    }
    if request.documents_field == "input":
        answer |= {"top_k": len(results), "return_input": bool(request.return_input)}
    return answer | (_weaviate(scored, request) if request.is_of_weaviate else {})


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


def _weaviate(scored: Scored, request: RerankRequest) -> dict[str, Any]:
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
    return {"rankings": rankings, "usage": usage(scored), "meta": _meta(scored, naming, request)}


def infinity(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    """Documents come back as strings."""
    answer = canonical_without_texts(scored, request, naming)
    answer["object"] = "rerank"
    for result in (*answer["results"], *answer["data"]):
        if isinstance(result.get("document"), Mapping):
            result["document"] = result["document"]["text"]
    return answer


def tei(scored: Scored, request: RerankRequest, naming: Naming) -> list[dict[str, Any]]:
    """A bare list, of all unless a client says how many: LiteLLM's does."""
    return [
        {"index": index, "score": value_of(scored.pairs[index], request.is_raw)}
        | ({"text": scored.texts[index]} if request.return_text else {})
        | _failure(scored.pairs[index])
        for index in ranked(scored, request)
    ]


def sglang(scored: Scored, request: RerankRequest, naming: Naming) -> list[dict[str, Any]]:
    """A bare list."""
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
    tokens = {"compute-tokens": scored.num_tokens, "compute-characters": scored.num_characters}
    cost = {f"compute-{name}": f"{cost:.12g}" for name, cost in naming.cost(scored).items()}
    below = {name.replace("_", "-"): num for name, num in left_out(scored, request).items()}
    tei_s: dict[str, Any] = {}
    if request.documents_field == "texts":
        milliseconds = round(scored.seconds * 1_000)
        tei_s = {"compute-time": milliseconds, "total-time": milliseconds}
        tei_s |= {"compute-type": "gpu+optimized" if scored.is_on_gpu else "cpu"}
    return {f"x-{name}": str(value) for name, value in (tei_s | tokens | cost | below).items()}


def scores(scored: Scored, request: ScoreRequest, naming: Naming) -> dict[str, Any]:
    """vLLM's, in input order."""
    data = [
        {"index": index, "object": "score", "score": value_of(pair, request.is_raw)}
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


def dashscope(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    return {
        "output": {"results": _results(scored, request, bool(request.return_documents))},
        "usage": usage(scored),
        "meta": _meta(scored, naming, request),
        "request_id": naming.request_id,
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


def _meta(scored: Scored, naming: Naming, request: RerankRequest | None = None) -> dict[str, Any]:
    tokens = scored.num_tokens
    told = {
        "api_version": {"version": "2"},
        "server_version": naming.version,
        "billed_units": {"search_units": _search_units(scored), "total_tokens": tokens},
        "tokens": {"input_tokens": tokens, "output_tokens": 0},
        "warnings": scored.warnings,
    }
    return told | naming.cost(scored) | (left_out(scored, request) if request else {})


def _search_units(scored: Scored) -> int:
    return ceil(len(scored.pairs) / _DOCUMENTS_OF_A_SEARCH_UNIT)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask for scores and to be told them: where, in what, and how.

    write: makes the answer's content; its docstring describes the route. answer, failure: what the
    OpenAPI document says of them. fails_whole: its clients know no null score, so that a document
    that fails fails all by default. least_top_n: what a top_n must be, where zero is an error.
    """

    name: str
    paths: tuple[str, ...]
    write: Callable[[Scored, Any, Naming], Any]
    answer: Any
    request: type[RerankRequest | ScoreRequest | DashScopeRequest] = RerankRequest
    failure: Any = openapi.Failure
    fails_whole: bool = False
    least_top_n: str | None = None

    def wanted(self, body: Any) -> Any:
        """The request in the words that all dialects share. Raises InvalidRequest."""
        request = body.as_rerank() if isinstance(body, DashScopeRequest) else body
        if self.least_top_n and request.top_n == 0:
            raise InvalidRequest(f"top_n must be {self.least_top_n}, got 0", param="top_n")
        is_of_others = self.write is shaped and request.documents_field in ("texts", "passages")
        fails_whole = self.fails_whole or is_of_others or request.is_of_weaviate
        if request.on_error or not fails_whole:
            return request
        return request.model_copy(update={"on_error": "fail"})


DIALECTS = (
    Dialect("rerank", SHAPED_PATHS, shaped, openapi.ShapedAnswer, failure=openapi.ShapedFailure),
    Dialect(
        "reranks",
        ("/v1/reranks", "/reranks", "/compatible-api/v1/reranks"),
        canonical,
        openapi.RerankAnswer,
    ),
    Dialect("v2_rerank", ("/v2/rerank",), canonical_without_texts, openapi.RerankAnswer),
    Dialect(
        "infinity_rerank",
        ("/infinity/rerank", "/infinity/v1/rerank"),
        infinity,
        openapi.RerankAnswer,
        fails_whole=True,
        least_top_n="above zero",
    ),
    Dialect(
        "sglang_rerank",
        ("/sglang/v1/rerank", "/sglang/rerank"),
        sglang,
        openapi.SglangAnswer,
        least_top_n="at least 1",
    ),
    Dialect(
        "score",
        ("/score", "/v1/score"),
        scores,
        openapi.ScoreAnswer,
        request=ScoreRequest,
        fails_whole=True,
    ),
    Dialect(
        "dashscope_rerank",
        (DASHSCOPE_PATH,),
        dashscope,
        openapi.DashScopeAnswer,
        request=DashScopeRequest,
        failure=openapi.DashScopeFailure,
    ),
)
