"""The other dialects: the requests and answers that a plain rerank request has nothing to do with.

DIALECTS, at the end, is the table of the routes that score: a new dialect is an entry of it.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from shardrank.serve.dialects import openapi
from shardrank.serve.dialects.answers import (
    Dialect,
    Naming,
    canonical,
    canonical_with_texts,
    canonical_without_texts,
    left_out,
    meta,
    ranked,
    results,
    row,
    truncation,
    usage,
)
from shardrank.serve.dialects.contents import listed
from shardrank.serve.dialects.failures import DASHSCOPE_PATH, SHAPED_PATHS
from shardrank.serve.dialects.requests import Limit, Options, RerankRequest, Score, Side, Sides
from shardrank.serve.dialects.work import Scored


def shaped(scored: Scored, request: RerankRequest, naming: Naming) -> Any:
    """The field of the documents decides: canonical; with `texts` TEI's, with `passages` NIM's.

    With `property` Weaviate's too; `input` is Mixedbread's, whose answer is canonical.
    """
    if request.documents_field == "texts":
        return tei(scored, request, naming)
    if request.documents_field == "passages":
        return nim(scored, request, naming)
    if request.documents_field == "input":
        return canonical(scored, request, naming, bool(request.return_input))
    return canonical_with_texts(scored, request, naming)


def tei(scored: Scored, request: RerankRequest, naming: Naming) -> list[dict[str, Any]]:
    """A bare list, of all unless a client says how many: LiteLLM's does."""
    texts = [{"text": text} if request.return_text else {} for text in scored.texts]
    return [row(i, scored.pairs[i], request, more=texts[i]) for i in ranked(scored, request)]


def nim(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    rankings = [
        row(i, scored.pairs[i], request, "logit") | truncation(scored.pairs[i])
        for i in ranked(scored, request)
    ]
    return {"rankings": rankings, "usage": usage(scored), "meta": meta(scored, naming, request)}


def infinity(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    """Documents come back as strings."""
    answer = canonical_without_texts(scored, request, naming)
    answer["object"] = "rerank"
    for result in (*answer["results"], *answer["data"]):
        if isinstance(result.get("document"), Mapping):
            result["document"] = result["document"]["text"]
    return answer


def sglang(scored: Scored, request: RerankRequest, naming: Naming) -> list[dict[str, Any]]:
    """A bare list."""
    answer = []
    for index in ranked(scored, request):
        pair = scored.pairs[index]
        echo = {"document": scored.texts[index]} if request.return_documents is not False else {}
        told = {"prompt_tokens": pair.num_tokens} | truncation(pair)
        answer.append(row(index, pair, request, more=echo) | {"meta_info": told})
    return answer


def headers(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, str]:
    """Usage and cost beside a bare list, named as TEI names what it computed."""
    tokens = {"compute-tokens": scored.num_tokens, "compute-characters": scored.num_characters}
    cost = {
        f"compute-{name}": f"{cost:.12g}" for name, cost in naming.cost(scored.num_tokens).items()
    }
    below = {name.replace("_", "-"): num for name, num in left_out(scored, request).items()}
    tei_s: dict[str, Any] = {}
    if request.documents_field == "texts":
        milliseconds = round(scored.seconds * 1_000)
        tei_s = {"compute-time": milliseconds, "total-time": milliseconds}
        tei_s |= {"compute-type": "gpu+optimized" if scored.is_on_gpu else "cpu"}
    return {f"x-{name}": str(value) for name, value in (tei_s | tokens | cost | below).items()}


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
        if len(self._given) != 1:
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
    def side_names(self) -> tuple[str, str]:
        left, right = self.fields
        return f"{left}[{{}}]", f"{right}[{{}}]"

    @property
    def lists(self) -> tuple[list[Any], list[Any]]:
        """Each is one side or a list of them; a list of parts stands in `content`."""
        left, right = (getattr(self, name) for name in self.fields)
        return (
            left if isinstance(left, list) else [left],
            right if isinstance(right, list) else [right],
        )

    @property
    def sides_of_parts(self) -> list[str]:
        return [
            name
            for name in self.fields
            if isinstance(side := getattr(self, name), Mapping) and len(listed(side)) > 1
        ]

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


def scores(scored: Scored, request: ScoreRequest, naming: Naming) -> dict[str, Any]:
    """vLLM's, in input order."""
    data = [
        {"index": index, "object": "score"} | row(index, pair, request) | truncation(pair)
        for index, pair in enumerate(scored.pairs)
    ]
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": naming.model,
        "data": data,
        "usage": usage(scored),
        "meta": meta(scored, naming),
    }


class DashScopeInput(BaseModel):
    query: Side | None
    documents: Sides


class DashScopeParameters(Options):
    """DashScope's own are top_n, return_documents, instruct and fps."""

    top_n: Limit | None = None
    return_documents: bool | None = None
    min_score: Score | None = None
    score_threshold: Score | None = None


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
        """Parameters that nobody knows are kept by name, to be named in the answer."""
        parameters = self.parameters or DashScopeParameters()
        known = parameters.model_dump(include=set(DashScopeParameters.model_fields))
        unknown = list(parameters.model_extra or ())
        return RerankRequest(
            **{f"parameters.{name}": None for name in unknown},
            **known
            | {
                "model": self.model,
                "query": self.input.query,
                "documents": self.input.documents,
                "return_documents": bool(parameters.return_documents),
            },
        )


def dashscope(scored: Scored, request: RerankRequest, naming: Naming) -> dict[str, Any]:
    return {
        "output": {"results": results(scored, request, bool(request.return_documents))},
        "usage": usage(scored),
        "meta": meta(scored, naming, request),
        "request_id": naming.request_id,
    }


DIALECTS = (
    Dialect(
        "rerank",
        SHAPED_PATHS,
        shaped,
        openapi.ShapedAnswer,
        failure=openapi.ShapedFailure,
        whole_fields=("texts", "passages"),
    ),
    Dialect(
        "reranks",
        ("/v1/reranks", "/reranks", "/compatible-api/v1/reranks"),
        canonical_with_texts,
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
        as_rerank=DashScopeRequest.as_rerank,
        failure=openapi.DashScopeFailure,
    ),
)
