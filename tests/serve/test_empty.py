"""Content that says nothing, and numbers, in every dialect over HTTP, with the tiny real model."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.serve.dialects.failures import DASHSCOPE_PATH
from tests.support.serve_app import TINY, running

EMPTY = [None, {}, [], {"text": None}, {"image": []}, "", " \n", {"text": "", "image": ""}]
CANONICAL = ["/rerank", "/v1/rerank", "/v2/rerank", "/sglang/v1/rerank", DASHSCOPE_PATH]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running() as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def body_of(path: str, query: Any, documents: list[Any], **more: Any) -> dict[str, Any]:
    body = {"query": query, "documents": documents}
    return {"input": body, **more} if path == DASHSCOPE_PATH else body | more


def results_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """In input order."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    body = body.get("output", body) if isinstance(body, dict) else {"results": body}
    return sorted(body["results"], key=lambda result: result["index"])


def score_of(result: dict[str, Any]) -> Any:
    return result["relevance_score"] if "relevance_score" in result else result["score"]


@pytest.mark.parametrize("path", CANONICAL)
def test_a_document_that_says_nothing_is_its_own_error(path: str, client: httpx.Client) -> None:
    documents = ["an evening at home", *EMPTY, "a quiet walk"]
    results = results_of(client.post(path, json=body_of(path, "party", documents)))
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == [None, *["empty_document"] * len(EMPTY), None]
    assert [score_of(result) is None for result in results] == [code is not None for code in codes]
    assert results[1]["error"]["message"].startswith("documents[1] says nothing")


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/rerank", {"query": "q", "texts": ["a", "", "b"]}, "texts[1]"),
        ("/rerank", {"query": "q", "texts": ["", " "]}, "texts[0]"),
        ("/infinity/rerank", {"query": "q", "documents": ["a", None]}, "documents[1]"),
        ("/rerank", {"query": "q", "documents": ["a", ""], "property": ""}, "documents[1]"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": ""}]}, "passages[0]"),
        ("/score", {"queries": "q", "documents": ["a", "b", None]}, "documents[2]"),
        ("/score", {"queries": ["q", "r"], "documents": ["a", {}]}, "documents[1]"),
        ("/score", {"text_1": ["q", "r"], "text_2": ["a", " "]}, "text_2[1]"),
        ("/score", {"data_1": ["q", ""], "data_2": ["a", "b"]}, "data_2[1]: query says nothing"),
        ("/v1/rerank", {"query": "q", "documents": ["a", ""], "on_error": "fail"}, "documents[1]"),
        (
            "/v2/rerank",
            {
                "query": "q",
                "documents": ["a", {"text": "b", "instruction": "i"}, {"instruction": "i"}],
                "on_error": "fail",
            },
            "documents[2]",
        ),
    ],
)
def test_a_dialect_without_a_place_for_it_names_the_index(
    path: str, body: dict[str, Any], place: str, client: httpx.Client
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    sentence = answer.json().get("message") or answer.json()["error"]
    assert sentence.startswith(place) and "says nothing: it has " in sentence


def test_score_gives_null_where_that_is_asked_for(client: httpx.Client) -> None:
    body = {"queries": "q", "documents": ["a", ""], "on_error": "null"}
    answer = client.post("/score", json=body)
    assert [one["score"] is None for one in answer.json()["data"]] == [False, True]


@pytest.mark.parametrize("query", EMPTY)
@pytest.mark.parametrize("path", [*CANONICAL, "/infinity/rerank"])
def test_a_query_that_says_nothing_fails_the_request(
    path: str, query: Any, client: httpx.Client
) -> None:
    answer = client.post(path, json=body_of(path, query, ["a", "b"]))
    assert answer.status_code == 400, answer.text
    body = answer.json()
    code = body["code"] if path == DASHSCOPE_PATH else body["error"]["code"]
    assert code == "empty_query" and body["message"].startswith("query says nothing")


def test_a_server_may_score_what_says_nothing_as_officially() -> None:
    config = RerankerConfig(model=str(TINY), device="cpu", num_threads=1, empty="official")
    with running(reranker=config) as url, httpx.Client(base_url=url, timeout=60) as client:
        documents = ["NULL", None, {"text": None}, {"image": []}, {}, "", {"text": ""}]
        results = results_of(
            client.post("/v2/rerank", json={"query": "cat", "documents": documents})
        )
        scores = [score_of(result) for result in results]
        assert scores[:5] == pytest.approx([scores[0]] * 5)
        assert scores[5] == pytest.approx(scores[6]) and abs(scores[5] - scores[0]) > 1e-4
