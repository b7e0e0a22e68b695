"""What vLLM's, TEI's and Infinity's own tests of their rerank and score routes claim, held here.

Their claims in our words, against the tiny real model: where they have a score of a known model,
here it is the engine's. What contradicts the contract of all clients together is not here: a pair
that is too long is cut unless that is declined, and what has the wrong shape is 422 everywhere.
"""

import itertools
from collections.abc import Iterator, Sequence
from math import exp
from typing import Any

import httpx
import pytest

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.data import CandidateSet
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.reranker import Reranker
from shardrank.serve.dialects.failures import body_of
from shardrank.serve.errors import ApiError, InvalidRequest, NotReady, TooManyRequests
from shardrank.serve.gate.key_file import ApiKey, hash_key
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.settings import Limits
from tests.support.serve_app import TINY, running
from tests.support.serve_clients import KEY, data_url, image
from tests.support.web_site import ok, serving

MODEL = "tiny"
MAX_TOKENS = 400
"""Of a pair, with the five tokens that close every one."""
MAX_DOCUMENTS = 320
QUERIES = ["Who wrote Faust?", "Who wrote Hamlet?"]
TEXTS = ["Goethe finished Faust in 1831.", "Hamlet is a play by Shakespeare.", "Ducks can swim."]


def config() -> RerankerConfig:
    options = QueryOptions(max_length=MAX_TOKENS - 5)
    return RerankerConfig(model=str(TINY), device="cpu", num_threads=1, options=options)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    keys = ApiKeys((ApiKey("alice", hash_key(KEY)),))
    own = {
        "reranker": config(),
        "limits": Limits(max_documents=MAX_DOCUMENTS),
        "web": WebMedia(allowed_networks=("127.0.0.0/8",)),
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        running(keys, **own) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def engine() -> Reranker:
    return Reranker(config())


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, path: str, status: int, **body: Any) -> str:
    """The message."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def ranked(results: list[dict], key: str = "relevance_score") -> list[tuple[int, float]]:
    return [(result["index"], result[key]) for result in results]


def expected_ranking(engine: Reranker, query: Any, documents: Sequence[Any]) -> list[Any]:
    scores = engine.score(query, documents)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [(index, pytest.approx(scores[index], abs=1e-5)) for index in order]


def sigmoid(logits: Sequence[float]) -> Any:
    return pytest.approx([1 / (1 + exp(-logit)) for logit in logits], abs=1e-5)


# vLLM: /score, its four pairs of fields, 1:1, 1:N and N:N, one entry a pair in input order.

SCORE_FIELDS = [
    ("queries", "documents"),
    ("queries", "items"),
    ("text_1", "text_2"),
    ("data_1", "data_2"),
]
score_fields = pytest.mark.parametrize(("left", "right"), SCORE_FIELDS)


@pytest.mark.parametrize(
    ("queries", "documents"),
    [
        (QUERIES[0], TEXTS[0]),
        (QUERIES[0], TEXTS),
        (QUERIES[:1], TEXTS),
        (QUERIES, TEXTS[:2]),
    ],
)
@score_fields
def test_vllm_scores_pairs_in_input_order(left, right, queries, documents, client, engine):
    answer = post(client, "/score", model=MODEL, **{left: queries, right: documents})
    heads, bodies = ([each] if isinstance(each, str) else each for each in (queries, documents))
    heads = heads if len(heads) > 1 else heads * len(bodies)
    expected = [engine.score(head, [body])[0] for head, body in zip(heads, bodies, strict=True)]
    assert answer["id"] and (answer["object"], answer["model"]) == ("list", MODEL)
    assert [(one["index"], one["object"]) for one in answer["data"]] == [
        (index, "score") for index in range(len(bodies))
    ]
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-5)


@score_fields
def test_vllm_refuses_numbers_that_do_not_pair_up(left, right, client):
    assert "got 2 and 1" in refused(client, "/score", 422, **{left: QUERIES, right: TEXTS[:1]})
    assert left in refused(client, "/score", 400, **{left: [], right: TEXTS})
    assert right in refused(client, "/score", 400, **{left: QUERIES[:1], right: []})


@pytest.mark.parametrize(
    ("path", "query", "documents"),
    [("/score", *names) for names in SCORE_FIELDS] + [("/rerank", "query", "documents")],
)
def test_vllm_bounds_how_many_documents_a_request_may_have(path, query, documents, client):
    sent = {query: "q", documents: ["d"] * (MAX_DOCUMENTS + 1)}
    assert f"{documents} must be at most {MAX_DOCUMENTS}" in refused(client, path, 422, **sent)
    post(client, path, **{query: "q", documents: ["d"] * MAX_DOCUMENTS})


# vLLM: /rerank, its top_n, and what it shares with /score: prompt, activation, lengths.


@pytest.mark.parametrize("top_n", [None, 0, 1, 2, 3, 9])
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_vllm_ranks_the_best_first(path, top_n, client, engine):
    answer = post(client, path, model=MODEL, query=QUERIES[0], documents=TEXTS, top_n=top_n)
    assert answer["id"] and answer["model"] == MODEL
    assert ranked(answer["results"]) == expected_ranking(engine, QUERIES[0], TEXTS)[: top_n or None]
    assert ("document" in answer["results"][0]) == (path != "/v2/rerank")


SCORE = ("/score", "queries", "documents", "data", "score")
RERANK = ("/rerank", "query", "documents", "results", "relevance_score")
INFINITY = ("/infinity/rerank", *RERANK[1:])
TEI = ("/rerank", "query", "texts", None, "score")
RAW = {"raw_scores": (False, True)}
ACTIVATED = {"use_activation": (True, False), "activation": (True, False)}


@pytest.mark.parametrize(
    ("dialect", "name", "values"),
    [(each, *asked) for each in (RERANK, SCORE) for asked in ACTIVATED.items()]
    + [(each, *asked) for each in (INFINITY, TEI) for asked in RAW.items()],
)
def test_logits_are_given_where_activation_is_declined(dialect, name, values, client):
    path, query, documents, results, key = dialect

    def ask(wanted: bool | None) -> list[float]:
        answer = post(client, path, **{query: QUERIES[0], documents: TEXTS, name: wanted})
        return [one[key] for one in (answer[results] if results else answer)]

    scores, logits = map(ask, values)
    assert scores == pytest.approx(ask(None), abs=1e-5)
    assert scores == sigmoid(logits)
    assert scores != pytest.approx(logits, abs=1e-2)


LONG = "Faust was not finished quickly. " * 100


@pytest.mark.parametrize(
    "sent",
    [{"query": LONG, "documents": TEXTS}, {"query": "q", "documents": [TEXTS[0], LONG]}],
)
def test_vllm_tells_that_a_pair_is_too_long(sent, client):
    score = {"queries": sent["query"], "documents": sent["documents"]}
    for path, body in (("/rerank", sent), ("/score", score)):
        said = refused(client, path, 400, **body, truncation=False)
        assert "Please reduce the length of the input prompt" in said
        assert f"{MAX_TOKENS} tokens" in said
        post(client, path, **body, truncate_prompt_tokens=MAX_TOKENS - 1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("size", "num_tokens"), [(120, 120), (-1, MAX_TOKENS)])
def test_vllm_cuts_a_pair_to_so_many_tokens(size, num_tokens, side, client):
    sent = {"truncate_prompt_tokens": size, "truncation_side": side}
    answer = post(client, "/rerank", query="q", documents=[LONG], **sent)
    assert answer["results"][0]["truncated"]
    slack = 0 if side == "right" else 8  # the start is cut before the texts meet the template
    assert num_tokens - slack <= answer["usage"]["prompt_tokens"] <= num_tokens


def test_vllm_reads_fewer_tokens_with_max_tokens_per_doc(client):
    def num_tokens(path: str, name: str, **more: Any) -> int:
        body = {name: QUERIES[0], "documents": [LONG, TEXTS[0]], **more}
        return post(client, path, **body)["usage"]["prompt_tokens"]

    for path, name in (("/rerank", "query"), ("/score", "queries")):
        tight, loose = (num_tokens(path, name, max_tokens_per_doc=size) for size in (5, 50))
        assert 0 < tight < loose < num_tokens(path, name)


def test_vllm_reads_a_document_below_max_tokens_per_doc_as_it_is(client):
    plain = post(client, "/rerank", query=QUERIES[0], documents=TEXTS)
    bounded = post(client, "/rerank", query=QUERIES[0], documents=TEXTS, max_tokens_per_doc=50)
    assert bounded["usage"] == plain["usage"]
    assert not any("truncated" in result for result in bounded["results"])
    expected = [
        (index, pytest.approx(score, abs=1e-5)) for index, score in ranked(plain["results"])
    ]
    assert ranked(bounded["results"]) == expected


@pytest.mark.parametrize("path", ["/rerank", "/score"])
@pytest.mark.parametrize("size", [0, -5])
def test_vllm_wants_max_tokens_per_doc_above_zero(size, path, client):
    name = "query" if path == "/rerank" else "queries"
    body = {name: "q", "documents": TEXTS, "max_tokens_per_doc": size}
    assert "max_tokens_per_doc" in refused(client, path, 422, **body)


# vLLM: content parts. A text part is the text; an image is the same by its URL and in the request.

TEXT_PART = {"type": "text", "text": TEXTS[0]}
PART = {"type": "image_url", "image_url": {"url": data_url("red")}}
BLUE = {"type": "image_url", "image_url": {"url": data_url("blue")}}
RED_IMAGE = {"image": image("red")}
CONTENTS = [
    (TEXTS[0], TEXTS[0]),
    ({"content": [TEXT_PART]}, TEXTS[0]),
    ({"content": [PART]}, RED_IMAGE),
    ({"content": [TEXT_PART, PART]}, {"text": TEXTS[0], **RED_IMAGE}),
    ({"content": [PART, BLUE]}, {"image": [image("red"), image("blue")]}),
]
"""As sent, and as the engine takes it."""


def test_vllm_scores_an_image_by_its_url_as_in_the_request(client):
    with serving(lambda path: ok(image("red"))) as site:
        part = {"type": "image_url", "image_url": {"url": f"{site.url}/red.png"}}
        by_url = post(client, "/score", queries="red", documents={"content": [part]})
    sent = post(client, "/score", queries="red", documents={"content": [PART]})
    assert by_url["data"][0]["score"] == pytest.approx(sent["data"][0]["score"], abs=1e-5)
    assert by_url["usage"] == sent["usage"]


def test_vllm_takes_parts_and_strings_in_one_request(client, engine):
    documents, decoded = zip(*CONTENTS, strict=True)
    pairs = engine.score_sets([CandidateSet.parse("red", decoded)])[0]
    scores = [pair.score for pair in pairs]
    assert len({round(score, 4) for score in scores}) == 4
    for queries in ("red", ["red"] * len(documents)):
        answer = post(client, "/score", queries=queries, documents=documents)
        assert [one["score"] for one in answer["data"]] == pytest.approx(scores, abs=1e-5)
        assert answer["usage"]["prompt_tokens"] == sum(pair.num_tokens for pair in pairs)
    results = post(client, "/rerank", query="red", documents=documents)["results"]
    assert [score for _, score in sorted(ranked(results))] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("text", [None, "red color"])
def test_vllm_takes_an_image_as_the_query(text, client, engine):
    query = {"content": [PART, *([{"type": "text", "text": text}] if text else [])]}
    expected = engine.score(RED_IMAGE | ({"text": text} if text else {}), TEXTS)
    answer = post(client, "/score", queries=query, documents=TEXTS)
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-5)
    results = post(client, "/rerank", query=query, documents=TEXTS)["results"]
    assert [score for _, score in sorted(ranked(results))] == pytest.approx(expected, abs=1e-5)


# vLLM: what every route has.


@pytest.mark.parametrize("given", [None, "Custom", "not fit"])
def test_vllm_answers_with_a_request_id(given, client):
    answer = client.get("/health", headers={"X-Request-Id": given} if given else {})
    found = answer.headers["x-request-id"]
    assert found == given if given == "Custom" else len(found) == 32


# text-embeddings-inference: a bare list, best first, equal scores for equal texts.


def test_tei_ranks_equal_texts_alike(client):
    texts = ["test", "other", "test"]
    ranks = post(client, "/rerank", query="test", texts=texts, return_text=True)
    assert [set(rank) for rank in ranks] == [{"index", "score", "text"}] * 3
    assert [rank["text"] for rank in ranks] == [texts[rank["index"]] for rank in ranks]
    scores = dict(ranked(ranks, "score"))
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) != scores[1]
    assert [rank["score"] for rank in ranks] == sorted(scores.values(), reverse=True)


def test_tei_cuts_at_the_end_that_is_named(client):
    def score(**more: Any) -> float:
        return post(client, "/rerank", query="q", texts=[f"begin {LONG} end"], **more)[0]["score"]

    cut = pytest.approx(score(truncate=True), abs=1e-5)
    assert score(truncate=True, truncation_direction="Right") == cut
    assert score(truncate=True, truncation_direction="Left") != cut


def test_tei_tells_that_a_text_is_too_long(client):
    answer = client.post("/rerank", json={"query": "q", "texts": [LONG], "truncate": False})
    assert answer.status_code == 400 and set(answer.json()) == {"error", "error_type"}
    assert "Please reduce the length" in answer.json()["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (NotReady("starting"), 503, "Unhealthy"),
        (TooManyRequests("full"), 429, "Overloaded"),
        (InvalidRequest("too many texts"), 422, "Validation"),
        (ApiError("failed"), 500, "Backend"),
    ],
)
def test_tei_names_kinds_of_errors(error, status, kind):
    assert error.status == status
    assert body_of(error, "/rerank", "", {"texts": []}) == {
        "error": str(error),
        "error_type": kind,
    }


def test_tei_says_in_headers_what_it_computed(client, engine):
    pairs = engine.score_sets([CandidateSet.parse(QUERIES[0], TEXTS)])[0]
    answer = client.post("/rerank", json={"query": QUERIES[0], "texts": TEXTS})
    assert answer.headers["x-compute-type"] == "cpu"
    assert answer.headers["x-compute-tokens"] == str(sum(pair.num_tokens for pair in pairs))
    characters = sum(len(QUERIES[0]) + len(text) for text in TEXTS)
    assert answer.headers["x-compute-characters"] == str(characters)
    assert int(answer.headers["x-compute-time"]) == int(answer.headers["x-total-time"]) > 0


# Infinity: its prefix, documents as strings, top_n above zero.


@pytest.mark.parametrize("order", list(itertools.permutations(TEXTS)))
@pytest.mark.parametrize("top_n", [1, 2, 8_000])
@pytest.mark.parametrize("returns", [True, False])
def test_infinity_keeps_top_n_in_any_order(returns, top_n, order, client, engine):
    sent = {"documents": list(order), "top_n": top_n, "return_documents": returns}
    answer = post(client, "/infinity/rerank", query=QUERIES[0], **sent)
    assert (answer["object"], answer["model"]) == ("rerank", MODEL)
    results = answer["results"]
    assert ranked(results) == expected_ranking(engine, QUERIES[0], order)[:top_n]
    echoes = [order[result["index"]] if returns else None for result in results]
    assert [result.get("document") for result in results] == echoes


@pytest.mark.parametrize("top_n", [-1, 0])
def test_infinity_wants_top_n_above_zero(top_n, client):
    sent = {"query": "q", "documents": TEXTS, "top_n": top_n}
    assert "top_n" in refused(client, "/infinity/rerank", 422, **sent)
