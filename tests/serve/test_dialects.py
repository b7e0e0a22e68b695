"""What real callers send, on every dialect's path over HTTP, with the tiny real model."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from typing import Any

import httpx
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.actors.reranker import Reranker
from shardrank.serve.dialects.failures import DASHSCOPE_PATH
from shardrank.serve.gate.key_file import ApiKey, hash_key
from shardrank.serve.gate.keys import ApiKeys
from tests.support.serve_app import TINY, running, settings
from tests.support.serve_clients import KEY, image, tiny_engine

QUERY = "Which planet is red?"
DOCUMENTS = ["Bananas are yellow.", "Mars is red.", "Venus is the second planet."]


@dataclass(frozen=True)
class Dialect:
    """Where a request goes and what its fields are called; limit None: it takes none."""

    path: str
    documents: str = "documents"
    results: str | None = "results"
    score: str = "relevance_score"
    query: str = "query"
    limit: str | None = "top_n"

    def body(self, query: Any, documents: Any, limit: Any = None, **more: Any) -> dict[str, Any]:
        body = {self.query: query, self.documents: documents}
        own = {self.limit: limit} if self.limit and limit is not None else {}
        if self.path == DASHSCOPE_PATH:
            return {"input": body, "parameters": own | more}
        return body | own | more

    def listed(self, answer: httpx.Response) -> list[dict[str, Any]]:
        """The results as they stand in an answer."""
        assert answer.status_code == 200, answer.text
        body = answer.json()
        body = body.get("output", body) if isinstance(body, dict) else body
        return body if self.results is None else body[self.results]

    def order(self, answer: httpx.Response) -> list[int]:
        return [one["index"] for one in self.listed(answer)]

    def scores(self, answer: httpx.Response) -> list[Any]:
        """In input order."""
        return [one[self.score] for one in self.by_index(answer)]

    def by_index(self, answer: httpx.Response) -> list[dict[str, Any]]:
        return sorted(self.listed(answer), key=lambda one: one["index"])


CANONICAL = (
    "/rerank", "/v1/rerank", "/v2/rerank", "/v1/reranks", "/reranks",
    "/compatible-api/v1/reranks", "/reranking", "/v1/reranking",
)  # fmt: skip
DIALECTS = {
    **{path: Dialect(path) for path in CANONICAL},
    "TEI": Dialect("/rerank", "texts", None, "score"),
    "llama.cpp": Dialect("/v1/reranking", "texts", None, "score"),
    "NIM": Dialect("/v1/ranking", "passages", "rankings", "logit"),
    "RAGFlow's NIM": Dialect("/reranking", "passages", "rankings", "logit"),
    "Mixedbread": Dialect("/v1/reranking", "input", "data", "score", limit="top_k"),
    "Voyage": Dialect("/v1/rerank", "documents", "data", limit="top_k"),
    "Pinecone": Dialect("/rerank", "documents", "data", "score"),
    "Infinity": Dialect("/infinity/rerank"),
    "SGLang": Dialect("/sglang/v1/rerank", results=None, score="score"),
    "DashScope": Dialect(DASHSCOPE_PATH),
    "score": Dialect("/score", "documents", "data", "score", "queries", limit=None),
    "v1 score": Dialect("/v1/score", "text_2", "data", "score", "text_1", limit=None),
}
every_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
every_ranking = pytest.mark.parametrize(
    "dialect", [each for each in DIALECTS.values() if each.limit], ids=lambda each: each.path
)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running() as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    """With a key and a page that may call; the client sends no key by itself."""
    keys = ApiKeys((ApiKey("alice", hash_key(KEY)),))
    with (
        running(keys, cors_origins=("https://app.test",), served_name="org/tiny") as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def engine() -> Reranker:
    return tiny_engine()


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@every_dialect
def test_scores_are_the_engines_and_rankings_best_first(dialect, client, engine):
    answer = client.post(dialect.path, json=dialect.body(QUERY, DOCUMENTS))
    got = dialect.scores(answer)
    if dialect.limit:
        assert dialect.order(answer) == sorted(range(3), key=lambda index: -got[index])
    got = [1 / (1 + exp(-score)) for score in got] if dialect.score == "logit" else got
    assert got == pytest.approx(engine.score(QUERY, DOCUMENTS), abs=1e-5)


@every_dialect
def test_half_a_surrogate_pair_is_the_replacement_character(dialect, client):
    def scores(half: str) -> list[float]:
        body = dialect.body(f"party {half}", ["at home", f"we danced {half}"], instruct=f"i {half}")
        return dialect.scores(client.post(dialect.path, content=json.dumps(body), headers=JSON))

    assert scores("\ud83c") == scores("\udfff") == scores("\ufffd") != scores("")


JSON = {"Content-Type": "application/json"}


PARTS = [{"type": "text", "text": text} for text in DOCUMENTS[:2]]


FORMS = {
    "one text": ("Mars is red.", ["Mars is red."]),
    "one object": ({"text": "Mars is red."}, ["Mars is red."]),
    "an empty part beside a text": ([{"text": "a", "image": ""}], ["a"]),
}
RANKINGS = [each for each in DIALECTS.values() if each.limit]


@pytest.mark.parametrize(
    ("dialect", "form"),
    [(each, form) for each in DIALECTS.values() for form in FORMS.values()]
    + [(each, ({"content": PARTS}, DOCUMENTS[:2])) for each in RANKINGS],
)
def test_documents_in_another_form_score_alike(dialect, form, client):
    ask = [dialect.body(QUERY, documents) for documents in form]
    left, right = (dialect.scores(client.post(dialect.path, json=body)) for body in ask)
    assert left == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("dialect", [each for each in RANKINGS if each.path != DASHSCOPE_PATH])
def test_a_number_in_a_rank_field_is_words(dialect, client):
    films = [{"title": "A film", "year": year} for year in (1931, "1931")]
    body = dialect.body("old film", films, rank_fields=["title", "year"])
    left, right = dialect.scores(client.post(dialect.path, json=body))
    assert left == pytest.approx(right, abs=1e-5)


def test_score_gives_one_score_to_an_object_of_parts_and_says_so(client):
    parts = [{"type": "text", "text": text} for text in DOCUMENTS]
    answer = post(client, "/score", queries=QUERY, documents={"content": parts})
    assert len(answer["data"]) == 1
    assert "'documents' is one side of several parts, with one" in answer["meta"]["warnings"][0]
    plain = post(client, "/score", queries=QUERY, documents={"content": parts[:1]})
    assert plain["meta"]["warnings"] == []


NOT_READ = {"user": 123, "priority": "high", "request_id": 7, "max_chunks_per_doc": "many"}


@pytest.mark.parametrize(
    ("dialect", "limit", "more", "num"),
    [(each, limit, {}, 2) for each in RANKINGS for limit in ("2", 2.0, 2)]
    + [(each, None, NOT_READ, 3) for each in DIALECTS.values()],
)
def test_whole_numbers_come_in_any_form_and_what_nobody_reads_of_any_type(
    dialect, limit, more, num, client
):
    answer = client.post(dialect.path, json=dialect.body(QUERY, DOCUMENTS, limit, **more))
    assert len(dialect.scores(answer)) == num


@every_dialect
def test_objects_have_fields_beside_their_text(dialect, client, engine):
    pages = [{"page_content": text, "metadata": {"page": 3}} for text in DOCUMENTS]
    others = [{"text": text, "year": 1931, "tags": ["a"]} for text in DOCUMENTS]
    for documents in (pages, others):
        answer = client.post(dialect.path, json=dialect.body(QUERY, documents))
        expected = dialect.scores(client.post(dialect.path, json=dialect.body(QUERY, DOCUMENTS)))
        assert dialect.scores(answer) == pytest.approx(expected, abs=1e-5)
        if dialect.results:
            assert f"{dialect.documents}[0]" in answer.json()["meta"]["warnings"][0]


WRONG = [
    (["at home", None, "a walk"], "[1]", "empty_document"),
    (["a", {"text": None}], "[1]", "empty_document"),
    ([{"image": []}, "NULL"], "[0]", "empty_document"),
    ([{"title": "A film", "year": 1931}, "b"], "[0].year", "invalid_content"),
    (["a", 7], "[1]", "invalid_content"),
]


@every_dialect
@pytest.mark.parametrize(("documents", "place", "code"), WRONG)
def test_a_document_without_content_is_its_own_error_or_named(
    documents, place, code, dialect, client
):
    """The second in dialects that have no place for one document's error."""
    answer = client.post(dialect.path, json=dialect.body(QUERY, documents))
    assert f"{dialect.documents}{place}" in answer.text
    if answer.status_code == 200:
        assert code in answer.text
        assert dialect.scores(answer).count(None) == 1
    else:
        assert answer.status_code == 400


@every_dialect
def test_a_compressed_body_is_refused_by_its_header(dialect, client):
    packed = gzip.compress(json.dumps(dialect.body(QUERY, DOCUMENTS)).encode())
    headers = JSON | {"Content-Encoding": "gzip"}
    answer = client.post(dialect.path, content=packed, headers=headers)
    assert answer.status_code == 415 and "Content-Encoding: gzip" in answer.json()["message"]
    whole = json.dumps(dialect.body(QUERY, DOCUMENTS))
    headers = JSON | {"Content-Encoding": "identity"}
    assert client.post(dialect.path, content=whole, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "sentence", "headers"),
    [
        (b'{"query": "caf\xe9", "documents": ["a"]}', "not UTF-8: byte 0xe9 at 14", JSON),
        (b"\xff{}", "not UTF-8: byte 0xff at 0", JSON),
        (b"\xff\xfe{}\x00", "not UTF-16", JSON),
        (b"[" * 60_000, "nested too deeply", JSON),
        (b'{"top_n": ' + b"9" * 5_000 + b"}", "digits", JSON),
        (b'{"query": ', "not JSON at character 10", JSON),
        (b"{", "not JSON at character 1", JSON),
        (b"[]", "the body must be a JSON object", JSON),
        (b"null", "the body must be a JSON object", JSON),
        (b"", "the body must be a JSON object", JSON),
        (b'{"query": "q"}', "Content-Type: application/json", {"Content-Type": "text/plain"}),
    ],
)
@pytest.mark.parametrize("path", sorted({each.path for each in DIALECTS.values()}))
def test_a_body_that_cannot_be_read_says_why(path, body, sentence, headers, client):
    answer = client.post(path, content=body, headers=headers)
    assert answer.status_code in (400, 422) and sentence in answer.json()["message"]


# What one client alone reads or sends.


def test_nim_has_images_in_passages(client, engine):
    data = image("red")
    packed = base64.b64encode(data).decode()
    passages = [{"text": "red", "image": packed}, {"image": f"data:image/png;base64,{packed}"}]
    answer = post(client, "/ranking", query={"text": QUERY}, passages=passages)
    expected = engine.score(QUERY, [{"text": "red", "image": data}, {"image": data}])
    got = {one["index"]: 1 / (1 + exp(-one["logit"])) for one in answer["rankings"]}
    assert [got[0], got[1]] == pytest.approx(expected, abs=1e-5)


def test_tei_says_what_it_serves(client):
    info = client.get("/info").json()
    assert info["model_id"] == "tiny" and list(info["model_type"]) == ["reranker"]
    assert info["max_input_length"] > 1_000 and info["max_client_batch_size"] == 10_000


def test_a_model_is_known_by_its_name(client, guarded):
    found = client.get("/v1/models/tiny").json()
    assert (found["id"], found["model_type"]) == ("tiny", "rerank")
    for name in ("org/tiny", "org%2Ftiny"):
        assert guarded.get(f"/v1/models/{name}", headers=WITH_KEY).json()["id"] == "org/tiny"
    missing = client.get("/v1/models/other")
    assert missing.status_code == 404 and "'tiny' is" in missing.json()["message"]
    for path in ("/models", "/infinity/models"):
        (found,) = client.get(path).json()["data"]
        assert (found["id"], found["owned_by"], found["stats"]) == ("tiny", "infinity", {})


def test_infinitys_client_finds_its_object_at_the_plain_path(client):
    body = {"query": "q", "documents": ["a"], "return_documents": False, "raw_scores": False}
    assert post(client, "/rerank", **body)["object"] == "rerank"


def test_data_has_strings_as_voyages_and_objects_as_pinecones(client):
    sent = [DOCUMENTS[0], {"text": DOCUMENTS[1], "id": "7"}]
    answer = post(client, "/v1/rerank", query=QUERY, documents=sent, return_documents=True)
    data = {one["index"]: one for one in answer["data"]}
    assert data[0]["document"] == DOCUMENTS[0]
    assert data[1]["document"] == {"text": DOCUMENTS[1], "id": "7"}
    assert all(one["score"] == one["relevance_score"] for one in answer["data"])
    assert all(isinstance(one["document"], dict) for one in answer["results"])
    assert (answer["usage"]["completion_tokens"], answer["usage"]["rerank_units"]) == (0, 1)


def test_mixedbread_has_its_input_back(client):
    body = {"query": QUERY, "input": DOCUMENTS, "top_k": 2, "return_input": True}
    answer = post(client, "/v1/reranking", **body)
    assert (answer["top_k"], answer["return_input"]) == (2, True)
    for one in answer["data"]:
        assert one["input"] == one["document"]["text"] == DOCUMENTS[one["index"]]
    plain = post(client, "/v1/reranking", **body | {"return_input": None})
    assert all("input" not in one for one in plain["data"])


def test_weaviate_has_scores_in_input_order(client, engine):
    answer = post(client, "/rerank", query=QUERY, documents=DOCUMENTS, property="")
    assert [one["document"] for one in answer["scores"]] == DOCUMENTS
    got = [one["score"] for one in answer["scores"]]
    assert got == pytest.approx(engine.score(QUERY, DOCUMENTS), abs=1e-5)
    assert client.get("/.well-known/ready").status_code == 200


def test_llama_cpps_clients_ask_for_teis_answer(client):
    body = {"query": QUERY, "documents": DOCUMENTS}
    for path in ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"):
        answer = post(client, path, **body, texts=True, return_text=True)
        assert all(one["text"] == DOCUMENTS[one["index"]] for one in answer)
        assert "results" in post(client, path, **body, texts=False)


@pytest.mark.parametrize("name", ["min_score", "score_threshold"])
@every_ranking
def test_results_below_a_least_score_are_left_out_and_counted(name, dialect, client):
    plain = client.post(dialect.path, json=dialect.body(QUERY, DOCUMENTS))
    scores = dialect.scores(plain)
    body = dialect.body(QUERY, DOCUMENTS, **{name: str(sorted(scores)[1])})
    answer = client.post(dialect.path, json=body)
    assert sorted(dialect.scores(answer)) == pytest.approx(sorted(scores)[1:])
    if dialect.results is None:
        assert answer.headers["x-num-below-min-score"] == "1"
    else:
        assert answer.json()["meta"]["num_below_min_score"] == 1
    assert "num_below_min_score" not in plain.text


def test_dashscopes_other_parameters_are_read_or_named(client):
    body = {"input": {"query": QUERY, "documents": DOCUMENTS}}
    parameters = {"use_activation": False, "temperature": 1}
    answer = post(client, DASHSCOPE_PATH, **body, parameters=parameters)
    warned = "field 'parameters.temperature' is not known and was ignored"
    assert answer["meta"]["warnings"] == [warned]
    assert any(not 0 < one["relevance_score"] < 1 for one in answer["output"]["results"])


# Paths, browsers and the document.

WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("path", ["//rerank", "/rerank/", "//v1//rerank//", "/v2/rerank/"])
def test_slashes_too_many_are_no_redirect(path, guarded):
    url = f"{guarded.base_url}".rstrip("/") + path
    body = {"query": "q", "documents": ["a"]}
    assert guarded.post(url, json=body).status_code == 401
    assert guarded.post(url, json=body, headers=WITH_KEY).status_code == 200
    assert guarded.get(f"{guarded.base_url}".rstrip("/") + "//health/").status_code == 200


def test_head_is_get_without_a_body(guarded):
    for path in ("/", "/health", "/ready", "/v1/models", "/metrics", "/docs", "/openapi.json"):
        answer = guarded.head(path, headers=WITH_KEY)
        assert answer.status_code == 200 and answer.content == b""
    assert guarded.head("/v1/models").status_code == 401
    assert guarded.head("/rerank", headers=WITH_KEY).status_code == 405


def test_xinferences_client_is_told_to_send_its_key(guarded, client):
    """After 404 it goes on, and sends none; after 401 it stops."""
    assert guarded.get("/v1/cluster/auth").json() == {"auth": True}
    assert guarded.get("/v1/cluster").status_code == 401
    assert client.get("/v1/cluster/auth").json() == {"auth": False}


def test_pages_of_named_origins_may_call(guarded, client):
    ask = {"Access-Control-Request-Method": "POST"}
    ask |= {"Access-Control-Request-Headers": "authorization,content-type,x-anything"}
    for origin, may in (("https://app.test", True), ("https://other.test", False)):
        asked = guarded.options("/v2/rerank", headers=ask | {"Origin": origin})
        assert (asked.status_code == 200) == may
        sent = {"Origin": origin, **WITH_KEY}
        answer = guarded.post("/v2/rerank", json={"query": "q", "documents": ["a"]}, headers=sent)
        assert (answer.headers.get("access-control-allow-origin") == origin) == may
    refused = guarded.post("/v2/rerank", headers={"Origin": "https://app.test"})
    assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers
    assert client.options("/v2/rerank", headers=ask | {"Origin": "a"}).status_code == 405


@pytest.mark.parametrize("origin", ["https://app.test/", "app.test", "https://app.test/a", ""])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ValueError, match="cors_origins must be"):
        settings(cors_origins=(origin,))


def test_docs_load_nothing_from_elsewhere(guarded):
    page = guarded.get("/docs", headers=WITH_KEY).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert loaded and all(each.startswith("/") and each[1] != "/" for each in loaded)
    for path in loaded:
        assert guarded.get(path, headers=WITH_KEY).status_code == 200
        assert guarded.get(path).status_code == 401
    assert "https://" not in page


def test_the_document_knows_the_keys(guarded, client):
    document = guarded.get("/openapi.json", headers=WITH_KEY).json()
    assert set(document["components"]["securitySchemes"]) == {"Bearer", "Api-Key", "X-API-Key"}
    assert {"Bearer": []} in document["security"]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_the_documents_enumerations_have_one_spelling_of_a_name(client):
    document = json.dumps(client.get("/openapi.json").json())
    found = [json.loads(each.lower()) for each in re.findall(r'"enum": (\[[^\]]*\])', document)]
    assert found and all(len(set(each)) == len(each) for each in found)
    answer = post(client, "/rerank", query="q", texts=["a"], truncation_direction="Left")
    assert len(answer) == 1


# Content that says nothing.

EMPTY = [None, {}, [], {"text": None}, {"image": []}, "", " \n", {"text": "", "image": ""}]
with_null = pytest.mark.parametrize(
    "dialect",
    [DIALECTS[name] for name in ("/rerank", "/v1/rerank", "/v2/rerank", "SGLang", "DashScope")],
    ids=lambda each: each.path,
)


@with_null
def test_a_document_that_says_nothing_is_its_own_error(dialect, client):
    body = dialect.body("party", ["an evening at home", *EMPTY, "a quiet walk"])
    results = dialect.by_index(client.post(dialect.path, json=body))
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == [None, *["empty_document"] * len(EMPTY), None]
    assert [one[dialect.score] is None for one in results] == [code is not None for code in codes]
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
def test_a_dialect_without_a_place_for_it_names_the_index(path, body, place, client):
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    sentence = answer.json().get("message") or answer.json()["error"]
    assert sentence.startswith(place) and "says nothing: it has " in sentence


def test_score_gives_null_where_that_is_asked_for(client):
    answer = post(client, "/score", queries="q", documents=["a", ""], on_error="null")
    assert [one["score"] is None for one in answer["data"]] == [False, True]


@pytest.mark.parametrize("query", EMPTY)
@every_ranking
def test_a_query_that_says_nothing_fails_the_request(dialect, query, client):
    answer = client.post(dialect.path, json=dialect.body(query, ["a", "b"]))
    assert answer.status_code == 400, answer.text
    found = answer.json()
    sentence = found.get("message") or found["error"]
    assert sentence.startswith("query says nothing")
    if "message" in found:
        assert found.get("error", found)["code"] == "empty_query"


def test_a_server_may_score_what_says_nothing_as_officially():
    config = RerankerConfig(model=str(TINY), device="cpu", num_threads=1, empty="official")
    documents = ["NULL", None, {"text": None}, {"image": []}, {}, "", {"text": ""}]
    with running(reranker=config) as url:
        answer = httpx.post(f"{url}/v2/rerank", json={"query": "cat", "documents": documents})
    scores = DIALECTS["/v2/rerank"].scores(answer)
    assert scores[:5] == pytest.approx([scores[0]] * 5)
    assert scores[5] == pytest.approx(scores[6]) and abs(scores[5] - scores[0]) > 1e-4
