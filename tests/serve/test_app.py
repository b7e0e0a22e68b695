"""The endpoint's routes, over HTTP, with the tiny real model: dialects, errors, limits, keys."""

import base64
import json
import re
from collections.abc import Iterator

import httpx
import pytest

from shardrank.actors.data import CandidateSet
from shardrank.actors.reranker import Reranker
from shardrank.serve.dialects.failures import DASHSCOPE_PATH
from shardrank.serve.gate.key_file import ApiKey, hash_key
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.settings import Limits
from tests.support.serve_app import running
from tests.support.serve_clients import BROKEN, KEY, data_url, tiny_engine

QUERY = "Which planet is red?"
DOCUMENTS = ["Mars is red.", "Bananas are yellow.", "Venus is the second planet."]
REQUEST = {"query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    limits = Limits(max_body_bytes=100_000, max_documents=50, max_media=4, max_image_pixels=10_000)
    with running(limits=limits) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def engine() -> Reranker:
    return tiny_engine()


def post(client: httpx.Client, path: str, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_index(results: list[dict], key: str = "relevance_score") -> list[float]:
    return [result[key] for result in sorted(results, key=lambda result: result["index"])]


def test_media_are_never_echoed(client):
    documents = [{"image": data_url("red")}, {"image": data_url("blue"), "text": "blue"}]
    answer = post(client, "/v1/rerank", query="red", documents=documents)
    echoed = {result["index"]: result.get("document") for result in answer["results"]}
    assert echoed == {0: None, 1: {"text": "blue"}}
    assert answer["usage"]["image_tokens"] > 0


def test_a_video_of_frames_is_scored(client, engine):
    frames = [data_url("red"), data_url("blue"), data_url("green")]
    decoded = [base64.b64decode(frame.partition(",")[2]) for frame in frames]
    expected = engine.score("q", [{"video": {"frames": decoded, "fps": 4.0}}])
    document = {"video": {"frames": frames, "fps": 4.0}}
    answer = post(client, "/v2/rerank", query="q", documents=[document])
    assert by_index(answer["results"]) == pytest.approx(expected, abs=1e-5)
    assert answer["usage"]["video_tokens"] > 0


def test_instructions_of_the_request_and_of_a_document(client, engine):
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1], "instruction": "Find fruit."}]
    expected = [
        engine.score(QUERY, [DOCUMENTS[0]], "Find stars.")[0],
        engine.score(QUERY, [DOCUMENTS[1]], "Find fruit.")[0],
    ]
    for name in ("instruction", "instruct"):
        body = {"query": QUERY, "documents": documents, name: "Find stars."}
        answer = post(client, "/v2/rerank", **body)
        assert by_index(answer["results"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"query": "q", "documents": ["a", BROKEN], "on_error": "fail"}, "documents[1]"),
        ({"query": BROKEN, "documents": ["a", "b"]}, "query"),
    ],
)
def test_a_broken_query_fails_all_and_a_document_where_that_is_wanted(body, place, client):
    answer = client.post("/v2/rerank", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "image_decode", place)


def test_media_over_plain_paths_and_private_addresses_are_errors(client):
    documents = [{"image": "/etc/hosts.png"}, {"image": "file:///etc/passwd"}]
    documents += [{"image": str(client.base_url) + "/health"}, {"image": "http://169.254.169.254/"}]
    results = post(client, "/v2/rerank", query="q", documents=documents)["results"]
    codes = [result["error"]["code"] for result in results]
    assert codes == ["invalid_content", "invalid_content", "media_forbidden", "media_forbidden"]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"query": "q", "texts": []}, 400, "Empty"),
        ({"query": 3, "texts": ["a"]}, 422, "Validation"),
        ({"query": "q", "texts": ["a"] * 51}, 422, "Validation"),
    ],
)
def test_tei_errors_are_teis(body, status, kind, client):
    answer = client.post("/rerank", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert set(answer.json()) == {"error", "error_type"} and answer.json()["error"]


def test_sglang_gets_a_bare_list(client):
    answer = post(client, "/sglang/v1/rerank", **REQUEST, top_n=2)
    assert len(answer) == 2 and answer[0]["document"] == DOCUMENTS[answer[0]["index"]]


def test_dashscope(client):
    body = {"model": "m", "input": {"query": {"text": QUERY}, "documents": DOCUMENTS}}
    answer = post(client, DASHSCOPE_PATH, **body, parameters={"top_n": 1})
    assert len(answer["output"]["results"]) == 1 and answer["request_id"]
    wrong = client.post(DASHSCOPE_PATH, json={"input": {}})
    assert wrong.status_code == 422 and set(wrong.json()) == {"code", "message", "request_id"}


LONG = "word " * 500
CUT = {"truncate_prompt_tokens": 200}


@pytest.mark.parametrize(
    ("path", "body", "places"),
    [
        ("/v1/rerank", {"documents": ["a", LONG]}, "results"),
        ("/infinity/rerank", {"documents": ["a", LONG]}, "results"),
        ("/score", {"documents": ["a", LONG]}, "data"),
        ("/sglang/v1/rerank", {"documents": ["a", LONG]}, "meta_info"),
        ("/rerank", {"texts": ["a", LONG]}, ""),
    ],
)
def test_every_dialect_says_what_was_truncated(path, body, places, client):
    queries = {"queries": "q"} if path == "/score" else {"query": "q"}
    answer = client.post(path, json=queries | body | CUT)
    assert answer.headers["x-truncated-documents"] == "1"
    found = answer.json()
    if places in ("results", "data"):
        assert found["meta"]["warnings"] == ["1 of 2 documents with their query were cut"]
    results = found if isinstance(found, list) else found[places]
    truncated = {
        each["index"]: each.get("meta_info", each).get("truncated", False) for each in results
    }
    assert truncated == {0: False, 1: places != ""}
    whole = client.post(path, json=queries | body)
    assert "x-truncated-documents" not in whole.headers and "truncated" not in whole.text


def test_a_truncated_query_is_said_of_its_documents(client):
    body = {"query": LONG, "documents": ["a", "b"], "max_tokens_per_query": 5}
    answer = client.post("/v2/rerank", json=body)
    assert [each["truncated"] for each in answer.json()["results"]] == [True, True]
    assert answer.headers["x-truncated-documents"] == "2"


def test_every_request_is_a_line_of_the_access_log_without_its_content(client, capsys):
    asked = [
        client.post("/v2/rerank?key=secret", json=REQUEST, headers={"X-Request-Id": "mine"}),
        client.post("/v2/rerank", json={}, headers={"X-Request-Id": "wrong"}),
        client.get("/ready", headers={"X-Request-Id": "probe"}),
    ]
    tokens = asked[0].json()["usage"]["total_tokens"]
    found = ""
    while found.count("\n") < 3:
        found += capsys.readouterr().out
    lines = sorted(re.sub(r" \d+ ms", "", line.partition(" ")[2]) for line in found.splitlines())
    assert lines == [
        "GET /ready 200 request_id=probe documents=0 tokens=0",
        f"POST /v2/rerank 200 request_id=mine documents=3 tokens={tokens}",
        "POST /v2/rerank 422 request_id=wrong documents=0 tokens=0",
    ]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"documents": ["a"]}, 422, "query"),
        ({"query": "q"}, 422, "documents"),
        ({"query": "q", "documents": []}, 400, "documents must not be empty"),
        ({"query": "q", "documents": [True]}, 422, "documents"),
        ({"query": "q", "documents": [{"image": True}]}, 422, "documents[0].image"),
        ({"query": "q", "documents": ["a"] * 51}, 422, "at most 50, got 51"),
        ({"query": "q", "documents": [{"image": [data_url("red")] * 5}]}, 422, "at most 4 images"),
        ({**REQUEST, "top_n": -1}, 422, "top_n"),
        ({**REQUEST, "mm_processor_kwargs": {"min_pixels": 9**9, "max_pixels": 9}}, 422, "pixels"),
        (
            {**REQUEST, "mm_processor_kwargs": {"min_pixels": 10**8, "max_pixels": 10**9}},
            422,
            "min_pixels",
        ),
    ],
)
def test_an_error_names_the_field_for_every_reader(body, status, sentence, client):
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == status
    found = answer.json()
    assert sentence in found["message"] == found["detail"] == found["error"]["message"]
    assert found["request_id"] == answer.headers["x-request-id"]


def test_a_body_over_the_limit_is_413_announced_or_not(client):
    large = json.dumps({"query": "q" * 200_000, "documents": ["a"]}).encode()
    assert client.post("/v2/rerank", content=large).status_code == 413
    chunks = (large[start : start + 9_000] for start in range(0, len(large), 9_000))
    answer = client.post("/v2/rerank", content=chunks)
    assert answer.status_code == 413 and "100,000 bytes" in answer.json()["message"]


def test_the_other_routes(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert "Playground" in client.get("/").text or "tiny" in client.get("/").text
    assert client.get("/nothing").status_code == 404
    assert "/v2/rerank" in client.get("/openapi.json").json()["paths"]


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_metrics_count_requests_pairs_and_batches(client):
    before = metric(client, "shardrank_pairs_total")
    post(client, "/v2/rerank", **REQUEST)
    assert metric(client, "shardrank_pairs_total") == before + 3
    assert metric(client, 'shardrank_requests_total{route="/v2/rerank",status="200"}') > 0
    client.get("/some/strange/path")
    assert metric(client, 'shardrank_requests_total{route="other",status="404"}') > 0


def test_an_image_of_an_earlier_request_is_not_encoded_again(client):
    def lookups(result: str) -> float:
        return metric(client, f'shardrank_vision_cache_total{{result="{result}"}}')

    request = {"query": "a page", "documents": [{"image": data_url("olive")}]}
    misses, hits = lookups("miss"), lookups("hit")
    first = post(client, "/v2/rerank", **request)
    assert (lookups("miss"), lookups("hit")) == (misses + 1, hits)
    again = post(client, "/v1/rerank", **request)
    assert (lookups("miss"), lookups("hit")) == (misses + 1, hits + 1)
    assert by_index(again["results"]) == pytest.approx(by_index(first["results"]), abs=1e-5)


PRICE = 250.0
SPENT = [
    ("/rerank", REQUEST),
    ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "top_k": 1}),
    ("/v2/rerank", REQUEST),
    ("/infinity/rerank", REQUEST),
    ("/score", {"queries": QUERY, "documents": DOCUMENTS}),
    (DASHSCOPE_PATH, {"input": REQUEST}),
    ("/rerank", {"query": QUERY, "texts": DOCUMENTS}),
    ("/sglang/v1/rerank", {**REQUEST, "top_n": 1}),
]


def test_every_answer_says_what_was_used_and_what_it_costs(engine):
    num_tokens = sum(
        pair.num_tokens for pair in engine.score_sets([CandidateSet.parse(QUERY, DOCUMENTS)])[0]
    )
    cost = pytest.approx(num_tokens * PRICE / 1e6)
    with running(price_per_million_tokens=PRICE) as url, httpx.Client(base_url=url) as client:
        answers = [client.post(path, json=body, timeout=60) for path, body in SPENT]
    for answer in answers[:-2]:
        found = answer.json()
        assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == num_tokens
        assert found["meta"]["billed_units"] == {"search_units": 1, "total_tokens": num_tokens}
        assert found["meta"]["cost"] == cost
        assert found["meta"]["tokens"]["input_tokens"] == num_tokens
    assert all(answer.json()["object"] == "list" for answer in answers[:3])
    for answer in answers[-2:]:  # bare lists
        assert answer.headers["x-compute-tokens"] == str(num_tokens)
        assert float(answer.headers["x-compute-cost"]) == cost


def test_without_a_price_there_is_no_cost(client):
    assert "cost" not in post(client, "/v2/rerank", **REQUEST)["meta"]
    answer = client.post("/sglang/v1/rerank", json=REQUEST)
    assert "x-compute-tokens" in answer.headers and "x-compute-cost" not in answer.headers


def test_every_path_but_health_and_ready_wants_the_key():
    key = ApiKey("alice", hash_key(KEY), requests_per_minute=600)
    with running(ApiKeys((key,))) as url, httpx.Client(base_url=url, timeout=60) as client:
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/nothing"):
            assert client.get(path).status_code == 401
        refused = client.post("/rerank", json=REQUEST)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert (
            "Basic" in client.get("/", headers={"Accept": "text/html"}).headers["www-authenticate"]
        )
        for headers in (
            {"Authorization": f"Bearer {KEY}"},
            {"Authorization": KEY},
            {"Api-Key": KEY},
            {"X-API-Key": KEY},
        ):
            assert client.post("/rerank", json=REQUEST, headers=headers).status_code == 200
        assert client.get("/", auth=("", KEY)).status_code == 200


def test_a_keys_limit_is_429_with_retry_after():
    key = ApiKey("bob", hash_key(KEY), requests_per_minute=1)
    headers = {"Authorization": f"Bearer {KEY}"}
    with running(ApiKeys((key,))) as url, httpx.Client(base_url=url, headers=headers) as client:
        assert client.get("/v1/models").status_code == 200
        refused = client.get("/v1/models")
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1


def test_a_strict_server_knows_its_model_alone():
    with running(is_strict_model=True, served_name="mine") as url:
        ask = {"url": f"{url}/v2/rerank", "timeout": 60}
        assert httpx.post(**ask, json={**REQUEST, "model": "mine"}).status_code == 200
        assert httpx.post(**ask, json={**REQUEST, "model": "other"}).status_code == 404
        assert httpx.post(**ask, json=REQUEST).status_code == 200
