"""Scores in the words that most clients read, and what a dialect is. Rendered in a thread.

serve/dialects/others.py has the other dialects, and the table of all.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from shardrank.actors.data import PairScore
from shardrank.serve.dialects import openapi
from shardrank.serve.dialects.contents import echo_of, whole
from shardrank.serve.dialects.requests import Options, RerankRequest
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

    def cost(self, num_tokens: int) -> dict[str, float]:
        """The cost of a request; {}: no price was set."""
        if self.price_per_million_tokens is None:
            return {}
        return {"cost": num_tokens * self.price_per_million_tokens / 1e6}


def ranked(scored: Scored, request: RerankRequest) -> list[int]:
    """Indices, best first, failed ones last, equal ones in input order; as many as are wanted."""

    def place(index: int) -> tuple[bool, float, int]:
        logit = scored.pairs[index].logit
        return (logit is None, 0.0 if logit is None else -logit, index)

    kept = [index for index, pair in enumerate(scored.pairs) if not _is_below(pair, request)]
    return sorted(kept, key=place)[: request.limit]


def _is_below(pair: PairScore, request: RerankRequest) -> bool:
    """A score under the one that the client set. What has none is told of."""
    value, least = value_of(pair, request), request.least_score
    return least is not None and value is not None and value < least


def left_out(scored: Scored, request: RerankRequest) -> dict[str, int]:
    """How many results are below the least score; {}: none was set."""
    if request.least_score is None:
        return {}
    return {"num_below_min_score": sum(_is_below(pair, request) for pair in scored.pairs)}


def canonical_with_texts(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    """Canonical, texts echoed unless that is declined."""
    return canonical(scored, request, naming, request.return_documents is not False)


def canonical_without_texts(
    scored: Scored, request: RerankRequest, naming: Naming
) -> dict[str, Any]:
    """Canonical, texts echoed if that is asked for."""
    return canonical(scored, request, naming, bool(request.return_documents))


def canonical(
    scored: Scored, request: RerankRequest, naming: Naming, returns_documents: bool
) -> dict[str, Any]:
    """What the clients of Cohere, Jina, vLLM, Voyage, Together, Pinecone and Mixedbread read.

    Infinity's own tells itself by raw_scores, which it always sends, and checks `object`.
    """
    found = results(scored, request, returns_documents)
    answer = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list" if request.raw_scores is None else "rerank",
        "created": int(time.time()),
        "model": naming.model,
        "results": found,
        "data": [_data(result, request) for result in found],
        "usage": usage(scored) | {"rerank_units": _search_units(scored)},
        "meta": meta(scored, naming, request),
    }
    if request.documents_field == "input":
        answer |= {"top_k": len(found), "return_input": bool(request.return_input)}
    if request.is_of_weaviate:  # its module reads these: in input order, always all
        answer["scores"] = [
            {"document": text or "", "score": value_of(pair, request)}
            for pair, text in zip(scored.pairs, scored.texts, strict=True)
        ]
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


def results(
    scored: Scored, request: RerankRequest, returns_documents: bool
) -> list[dict[str, Any]]:
    """The best first."""
    found = []
    for index in ranked(scored, request):
        pair, text = scored.pairs[index], scored.texts[index]
        echo = {}
        if returns_documents and text is not None:
            echo["document"] = echo_of(request.sides[index], text)
        found.append(row(index, pair, request, "relevance_score", echo) | truncation(pair))
    return found


def row(
    index: int,
    pair: PairScore,
    request: Options,
    name: str = "score",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What an answer says of one document: its value by `name`, what else, and why it has none."""
    answer = {"index": index, name: value_of(pair, request), **(more or {})}
    if pair.error is not None:
        answer["error"] = {"code": pair.error.code, "message": str(pair.error)}
    return answer


def value_of(pair: PairScore, request: Options) -> float | None:
    return pair.logit if request.is_raw else pair.score


def truncation(pair: PairScore) -> dict[str, bool]:
    """The document, or its query, was cut."""
    return {"truncated": True} if pair.is_truncated else {}


def meta(scored: Scored, naming: Naming, request: RerankRequest | None = None) -> dict[str, Any]:
    tokens = scored.num_tokens
    told = {
        "api_version": {"version": "2"},
        "server_version": naming.version,
        "billed_units": {"search_units": _search_units(scored), "total_tokens": tokens},
        "tokens": {"input_tokens": tokens, "output_tokens": 0},
        "warnings": scored.warnings,
    }
    return told | naming.cost(scored.num_tokens) | (left_out(scored, request) if request else {})


def _search_units(scored: Scored) -> int:
    return ceil(len(scored.pairs) / _DOCUMENTS_OF_A_SEARCH_UNIT)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask for scores and to be told them: where, in what, and how.

    write: makes the answer's content; its docstring describes the route. answer, failure: what the
    OpenAPI document says of them. as_rerank: of a body in other words. fails_whole: its clients
    know no null score, so that a document that fails fails all by default; whole_fields: where the
    documents stand whose clients do not. least_top_n: what a top_n must be, where zero is an error.
    """

    name: str
    paths: tuple[str, ...]
    write: Callable[[Scored, Any, Naming], Any]
    answer: Any
    request: type[BaseModel] = RerankRequest
    as_rerank: Callable[[Any], RerankRequest] | None = None
    failure: Any = openapi.Failure
    fails_whole: bool = False
    whole_fields: tuple[str, ...] = ()
    least_top_n: str | None = None

    def wanted(self, body: Any) -> Any:
        """The request in the words that all dialects share. Raises InvalidRequest."""
        request = self.as_rerank(body) if self.as_rerank else body
        if self.least_top_n and request.top_n == 0:
            raise InvalidRequest(f"top_n must be {self.least_top_n}, got 0", param="top_n")
        is_whole = self.fails_whole or request.documents_field in self.whole_fields
        if request.on_error or not (is_whole or request.is_of_weaviate):
            return request
        return request.model_copy(update={"on_error": "fail"})


class Json(JSONResponse):
    """Half a surrogate pair, which many readers refuse even as its escape, is U+FFFD.

    Rendered when it is sent, and in a thread: it may echo all of a large body.
    """

    def __init__(self, content: Any = None, status_code: int = 200, **more: Any) -> None:
        super().__init__(None, status_code, **more)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = await asyncio.to_thread(self.render, self._content)
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return whole(text).encode()
