"""Other people's rerank clients, as they are installed, against a running endpoint with a key.

Clients are imported where they are used, within the guard that keeps them on loopback: importing
them all takes many seconds, and some of them would download at that time.
"""

import asyncio
import inspect
import pkgutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from shardrank.actors.reranker import Reranker
from shardrank.serve.gate.keys import WRONG_KEY
from tests.support.loopback import loopback_only
from tests.support.serve_clients import (
    BROKEN,
    DECODED,
    DOCUMENTS,
    KEY,
    PICTURES,
    QUERY,
    WRONG,
    Ranking,
    assert_ranked,
    data_url,
    image,
    num_tokens,
    ranking,
    server_with_a_key,
    tiny_engine,
)

pytestmark = pytest.mark.filterwarnings(  # of their own code
    "ignore:unclosed:ResourceWarning", "ignore:The `dict` method is deprecated"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_with_a_key() as url:
        yield url


@pytest.fixture(scope="module")
def engine() -> Reranker:
    return tiny_engine()


@pytest.fixture(autouse=True)
def nothing_but_loopback(url, request) -> Iterator[None]:
    with loopback_only() as refused:
        yield
    assert refused <= (STUBBORN if "litellm" in request.node.name else set())


# The clients, each as one function of (url, key, query, documents, top_n).


def cohere(name, url, key, query, documents, top_n=None) -> Ranking:
    import cohere

    client = getattr(cohere, name)(key, base_url=url)
    answer = client.rerank(model="m", query=query, documents=documents, top_n=top_n)
    answer = asyncio.run(answer) if inspect.isawaitable(answer) else answer
    return [(result.index, result.relevance_score) for result in answer.results]


def langchain(url, key, query, documents, top_n=None) -> Ranking:
    from langchain_cohere import CohereRerank

    reranker = CohereRerank(cohere_api_key=key, base_url=url, model="m")
    results = reranker.rerank(documents, query, top_n=top_n)
    return [(result["index"], result["relevance_score"]) for result in results]


def llama_index(reranker, query, documents) -> Ranking:
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(index)), score=0.5)
        for index, text in enumerate(documents)
    ]
    ranked = reranker.postprocess_nodes(nodes, query_str=query)
    assert all(node.text == documents[int(node.node_id)] for node in ranked)
    return [(int(node.node_id), node.score) for node in ranked]


def llama_index_cohere(url, key, query, documents, top_n=None) -> Ranking:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    top_n = top_n or len(documents)
    return llama_index(CohereRerank(top_n, api_key=key, base_url=url), query, documents)


def llama_index_jina(url, key, query, documents, top_n=None) -> Ranking:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    reranker = JinaRerank(top_n or len(documents), base_url=f"{url}/v1", api_key=key)
    return llama_index(reranker, query, documents)


def llama_index_tei(url, key, query, documents, top_n=None, scheme="") -> Ranking:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    top_n = top_n or len(documents)
    reranker = TextEmbeddingInference(top_n, base_url=url, auth_token=scheme + key)
    return llama_index(reranker, query, documents)


def voyage(name, url, key, query, documents, top_n=None) -> Ranking:
    import voyageai

    answer = getattr(voyageai, name)(key, base_url=f"{url}/v1").rerank(
        query, documents, "m", top_k=top_n
    )
    results = (asyncio.run(answer) if inspect.isawaitable(answer) else answer).results
    assert all(result.document == documents[result.index] for result in results)
    return [(result.index, result.relevance_score) for result in results]


def rerankers(path, provider, url, key, query, documents, top_n=None) -> Ranking:
    from rerankers.models.api_rankers import APIRanker

    ids = list(range(len(documents)))
    ranked = APIRanker("m", key, provider, verbose=0, url=url + path).rank(query, documents, ids)
    assert all(result.text == documents[result.doc_id] for result in ranked)
    assert [result.rank for result in ranked] == [index + 1 for index in ids]
    results = ranked.top_k(top_n) if top_n else ranked.results  # the client's own: it asks for all
    return [(result.doc_id, result.score) for result in results]


PROVIDERS = {
    "cohere": "",
    "cohere at v1": "/v1/rerank",
    "jina_ai": "",
    "hosted_vllm": "",
    "together_ai": "/v1",
    "voyage": "/v1",
    "huggingface": "",
    "litellm_proxy": "",
    "infinity": "/infinity",
}
"""What their api_base is after the server's address."""

# Their dialects have no null score: a document that cannot be read is an error of the request.
WITHOUT_NULL = ("huggingface", "infinity")

# The huggingface provider looks a model's configuration up there, to tell its price, and has no
# switch for it. Refused, it goes on without.
STUBBORN = {"huggingface.co"}


def arguments(provider: str, url: str, documents: list[Any], **more: Any) -> dict[str, Any]:
    model = f"{provider.partition(' ')[0]}/m"
    asked = {"model": model, "query": QUERY, "documents": documents}
    return asked | {"api_key": KEY, "api_base": url + PROVIDERS[provider]} | more


def litellm(provider, url, key, query, documents, top_n=None) -> Ranking:
    more = {"top_n": top_n} if top_n else {}
    return as_ranking(litellm_rerank(provider, url, documents, query=query, api_key=key, **more))


def as_ranking(answer: Any) -> Ranking:
    return [(result["index"], result["relevance_score"]) for result in answer.results]


def litellm_rerank(provider: str, url: str, documents: list[Any], **more: Any) -> Any:
    import litellm

    return litellm.rerank(**arguments(provider, url, documents, **more))


@dataclass(frozen=True)
class Client:
    """refusal: what it raises for a wrong key; says: whether that holds the server's message."""

    rank: Callable[..., Ranking]
    refusal: str
    says: bool = True
    forwards_objects: bool = False


COHERE_REFUSAL = "cohere.errors:UnauthorizedError"

CLIENTS = {
    **{
        f"cohere {name}": Client(partial(cohere, name), COHERE_REFUSAL, forwards_objects=True)
        for name in ("ClientV2", "Client", "AsyncClientV2")
    },
    "langchain": Client(langchain, COHERE_REFUSAL),
    "llama-index cohere": Client(llama_index_cohere, COHERE_REFUSAL),
    "llama-index jina": Client(llama_index_jina, "builtins:RuntimeError"),
    # Reads no status: an error's body, an object, is no list of one score for each node.
    "llama-index tei": Client(llama_index_tei, "builtins:AssertionError", says=False),
    "llama-index tei, Bearer": Client(
        partial(llama_index_tei, scheme="Bearer "), "builtins:AssertionError", says=False
    ),
    **{
        f"voyageai {name}": Client(
            partial(voyage, name), "voyageai.error:AuthenticationError", forwards_objects=True
        )
        for name in ("Client", "AsyncClient")
    },
    # Reads no status: an error's body has no results.
    "rerankers cohere": Client(
        partial(rerankers, "/v1/rerank", "cohere"), "builtins:KeyError", says=False
    ),
    "rerankers jina": Client(
        partial(rerankers, "/v1/rerank", "jina"), "builtins:KeyError", says=False
    ),
    "rerankers voyage": Client(
        partial(rerankers, "/v1/rerank", "voyage"), "builtins:KeyError", says=False
    ),
    "rerankers mixedbread": Client(
        partial(rerankers, "/v1/reranking", "mixedbread.ai"), "builtins:KeyError", says=False
    ),
    "rerankers tei": Client(
        partial(rerankers, "/rerank", "text-embeddings-inference"),
        "builtins:TypeError",
        says=False,
    ),
    **{
        f"litellm {name}": Client(
            partial(litellm, name), "litellm:AuthenticationError", forwards_objects=True
        )
        for name in PROVIDERS
    },
}
each_provider = pytest.mark.parametrize("provider", PROVIDERS)
each_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


@pytest.mark.parametrize("top_n", [None, 2])
@each_client
def test_scores_and_order_are_the_engines_and_top_n_keeps_the_best(client, top_n, url, engine):
    expected = ranking(engine.score(QUERY, DOCUMENTS))
    assert [index for index, _ in expected] != list(range(len(DOCUMENTS)))
    assert_ranked(client.rank(url, KEY, QUERY, DOCUMENTS, top_n), expected[:top_n])


@each_client
def test_a_wrong_key_is_the_clients_own_exception(client, url):
    with pytest.raises(pkgutil.resolve_name(client.refusal)) as caught:
        client.rank(url, WRONG, QUERY, DOCUMENTS[:3])
    assert (WRONG_KEY in str(caught.value)) == client.says


@pytest.mark.parametrize(
    "client",
    [client for client in CLIENTS.values() if client.forwards_objects],
    ids=[name for name, client in CLIENTS.items() if client.forwards_objects],
)
def test_images_go_through_clients_that_forward_objects(client, url, engine):
    expected = ranking(engine.score(QUERY, DECODED))
    assert_ranked(client.rank(url, KEY, QUERY, PICTURES), expected)


def test_voyage_forwards_an_image_as_the_query(url, engine):
    expected = ranking(engine.score({"image": image("red")}, DECODED))
    assert_ranked(voyage("Client", url, KEY, {"image": data_url("red")}, PICTURES), expected)


@pytest.mark.parametrize("name", ["ClientV2", "Client"])
def test_cohere_reads_what_was_billed(name, url, engine):
    import cohere

    client = getattr(cohere, name)(KEY, base_url=url)
    answer = client.rerank(model="m", query=QUERY, documents=DOCUMENTS)
    assert answer.id and answer.meta.api_version.version and answer.meta.warnings == []
    assert answer.meta.billed_units.search_units == 1
    assert answer.meta.tokens.input_tokens == num_tokens(engine)


def test_cohere_v1_reads_documents_unless_declined(url):
    import cohere

    ask = partial(cohere.Client(KEY, base_url=url).rerank, query=QUERY, documents=DOCUMENTS)
    for result in ask(return_documents=True).results:
        assert result.document.text == DOCUMENTS[result.index]
    assert all(result.document is None for result in ask(return_documents=False).results)


PLANETS = [
    {"title": "Mars", "text": "It is red.", "id": "4"},
    {"title": "Banana", "text": "It is yellow.", "id": "0"},
]


@pytest.mark.parametrize(
    ("rank_fields", "read"),
    [
        (None, ["It is red.", "It is yellow."]),
        (["title"], ["title: Mars", "title: Banana"]),
        (
            ["title", "text"],
            ["title: Mars\ntext: It is red.", "title: Banana\ntext: It is yellow."],
        ),
    ],
)
def test_cohere_v1_keeps_an_objects_fields(rank_fields, read, url, engine):
    """As its documentation promises: the field text ranks, or rank_fields; all come back."""
    import cohere

    client = cohere.Client(KEY, base_url=url)
    asked = {"query": QUERY, "documents": PLANETS, "rank_fields": rank_fields}
    results = client.rerank(**asked, return_documents=True, max_chunks_per_doc=10).results
    assert_ranked(
        [(result.index, result.relevance_score) for result in results],
        ranking(engine.score(QUERY, read)),
    )
    assert [result.document.model_dump() for result in results] == [
        PLANETS[result.index] for result in results
    ]


def test_cohere_v1_is_sent_no_media_back(url):
    import cohere

    document = {"image": data_url("red"), "text": "t", "title": "Mars", "image_url": "unread"}
    client = cohere.Client(KEY, base_url=url)
    answer = client.rerank(query=QUERY, documents=[document], return_documents=True)
    assert answer.results[0].document.model_dump() == {"text": "t", "title": "Mars"}


def test_cohere_has_a_failed_document_last_and_without_a_score(url, engine):
    got = cohere("ClientV2", url, KEY, QUERY, [BROKEN, *DOCUMENTS])
    assert got[-1] == (0, None)
    expected = ranking(engine.score(QUERY, DOCUMENTS))
    assert_ranked([(index - 1, score) for index, score in got[:-1]], expected)


def test_cohere_cuts_documents_and_forwards_an_instruction(url, engine):
    import cohere

    more = {"additional_body_parameters": {"instruction": "Find fruit."}}
    ask = partial(cohere.ClientV2(KEY, base_url=url).rerank, model="m", query=QUERY)
    answer = ask(documents=DOCUMENTS, request_options=more)
    expected = ranking(engine.score(QUERY, DOCUMENTS, "Find fruit."))
    assert_ranked([(r.index, r.relevance_score) for r in answer.results], expected)
    cut = ask(documents=DOCUMENTS, max_tokens_per_doc=2)
    assert all(result.truncated for result in cut.results)


def test_langchain_compresses_its_documents(url, engine):
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    given = [Document(text, metadata={"page": index}) for index, text in enumerate(DOCUMENTS)]
    reranker = CohereRerank(cohere_api_key=KEY, base_url=url, model="m", top_n=2)
    kept = reranker.compress_documents(given, QUERY)
    assert all(each.page_content == DOCUMENTS[each.metadata["page"]] for each in kept)
    assert_ranked(
        [(each.metadata["page"], each.metadata["relevance_score"]) for each in kept],
        ranking(engine.score(QUERY, DOCUMENTS))[:2],
    )


def test_voyage_is_told_of_a_pair_that_is_too_long(url):
    import voyageai

    client = voyageai.Client(KEY, base_url=f"{url}/v1")
    with pytest.raises(voyageai.error.InvalidRequestError, match="Please reduce the length"):
        client.rerank(QUERY, ["word " * 12_000], "m", truncation=False)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerankers_scores_one_document(path, url, engine):
    from rerankers import Document
    from rerankers.models.api_rankers import APIRanker

    ranker = APIRanker("m", KEY, "cohere", verbose=0, url=url + path)
    expected = engine.score(QUERY, DOCUMENTS[:1])[0]
    assert ranker.score(QUERY, Document(DOCUMENTS[0])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("provider", ["cohere", "together_ai"])
def test_litellms_arerank_is_no_different(provider, url, engine):
    import litellm

    answer = asyncio.run(litellm.arerank(**arguments(provider, url, DOCUMENTS)))
    assert_ranked(as_ranking(answer), ranking(engine.score(QUERY, DOCUMENTS)))


@pytest.mark.parametrize("provider", ["jina_ai", "voyage", "huggingface"])
def test_an_image_is_litellms_query_where_it_is_forwarded(provider, url, engine):
    expected = ranking(engine.score({"image": image("red")}, DECODED))
    answer = litellm_rerank(provider, url, PICTURES, query={"image": data_url("red")})
    assert_ranked(as_ranking(answer), expected)


@each_provider
def test_litellm_reads_documents_unless_declined(provider, url):
    for result in litellm_rerank(provider, url, DOCUMENTS).results:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    declined = litellm_rerank(provider, url, DOCUMENTS, return_documents=False)
    assert all("document" not in result for result in declined.results)


@each_provider
def test_litellm_reads_what_was_billed(provider, url, engine):
    meta, count = litellm_rerank(provider, url, DOCUMENTS).meta, num_tokens(engine)
    if provider == "huggingface":  # its dialect counts no tokens: the client guesses
        assert meta["billed_units"] == {"search_units": 1}
    else:
        assert meta["billed_units"]["total_tokens"] == count
        assert meta["tokens"].get("input_tokens", count) == count


def test_litellms_hosted_vllm_sends_content_parts_and_an_instruction(url, engine):
    parts = [{"type": "image_url", "image_url": {"url": data_url("red")}}]
    documents = [{"content": [{"type": "text", "text": "red"}, *parts]}, {"content": parts}, "red"]
    decoded = [{"text": "red", "image": image("red")}, {"image": image("red")}, "red"]
    instruction = "Retrieve images of stars."
    answer = litellm_rerank("hosted_vllm", url, documents, instruction=instruction)
    assert_ranked(as_ranking(answer), ranking(engine.score(QUERY, decoded, instruction)))


def test_litellms_hosted_vllm_sends_its_limits(url):
    """Of the ends that are kept, the documents differ in nothing."""
    documents = ["start " * 300 + "the very end", "x " * 300 + "the very end"]
    limits = {"max_tokens_per_doc": 3, "truncation_side": "left"}
    cut = as_ranking(litellm_rerank("hosted_vllm", url, documents, **limits))
    assert cut[0][1] == pytest.approx(cut[1][1], abs=1e-5)
    for fewer in ({}, {"max_tokens_per_doc": 3}, {**limits, "max_tokens_per_query": 2}):
        other = as_ranking(litellm_rerank("hosted_vllm", url, documents, **fewer))
        assert other[0][1] != pytest.approx(cut[0][1], abs=1e-5)


@pytest.mark.parametrize("provider", WITHOUT_NULL)
def test_media_that_fail_are_named_to_litellm_where_a_dialect_has_no_null_score(provider, url):
    import litellm

    with pytest.raises(litellm.BadRequestError, match="JPEG, PNG, .* are read"):
        litellm_rerank(provider, url, ["a", BROKEN])


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name not in WITHOUT_NULL])
def test_litellm_never_makes_up_a_missing_score(provider, url):
    """LiteLLM's answers have no room for a null score: it raises, and its message is its own."""
    import litellm

    with pytest.raises(litellm.APIConnectionError, match="valid number|real number"):
        litellm_rerank(provider, url, ["a", BROKEN])


def test_litellms_huggingface_is_told_of_a_pair_that_is_too_long(url):
    import litellm

    with pytest.raises(litellm.BadRequestError, match="Please reduce the length"):
        litellm_rerank("huggingface", url, ["word " * 12_000])


def test_the_guard_refuses_and_names_other_hosts():
    with loopback_only() as refused:
        for host in ("192.0.2.1", "rerank.invalid"):
            with pytest.raises(OSError, match="not on loopback"):
                socket.create_connection((host, 80), timeout=1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            with pytest.raises(OSError, match="not on loopback"):
                datagrams.connect(("192.0.2.2", 53))
            with pytest.raises(OSError, match="not on loopback"):
                datagrams.sendto(b"", ("192.0.2.3", 53))
    assert refused == {"192.0.2.1", "192.0.2.2", "192.0.2.3", "rerank.invalid"}
