"""`litellm.rerank` of each of its providers that speak a dialect of the endpoint's, unmodified.

It is imported where it is used, within the guard that keeps it on loopback.
"""

import asyncio
from collections.abc import Iterator
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

pytestmark = pytest.mark.filterwarnings(  # of its own code
    "ignore:unclosed:ResourceWarning", "ignore:The `dict` method is deprecated"
)
each_provider = pytest.mark.parametrize("provider", PROVIDERS)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_with_a_key() as url:
        yield url


@pytest.fixture(scope="module")
def engine() -> Reranker:
    return tiny_engine()


@pytest.fixture(autouse=True)
def nothing_but_loopback(url) -> Iterator[None]:
    with loopback_only() as refused:
        yield
    assert refused <= STUBBORN


def arguments(provider: str, url: str, documents: list[Any], **more: Any) -> dict[str, Any]:
    model = f"{provider.partition(' ')[0]}/m"
    asked = {"model": model, "query": QUERY, "documents": documents}
    return asked | {"api_key": KEY, "api_base": url + PROVIDERS[provider]} | more


def rerank(provider: str, url: str, documents: list[Any], **more: Any) -> Any:
    import litellm

    return litellm.rerank(**arguments(provider, url, documents, **more))


def ranked(answer: Any) -> Ranking:
    return [(result["index"], result["relevance_score"]) for result in answer.results]


@each_provider
def test_scores_and_order_are_the_engines(provider, url, engine):
    expected = ranking(engine.score(QUERY, DOCUMENTS))
    assert [index for index, _ in expected] != list(range(len(DOCUMENTS)))
    assert_ranked(ranked(rerank(provider, url, DOCUMENTS)), expected)


@each_provider
def test_top_n_keeps_the_best(provider, url, engine):
    expected = ranking(engine.score(QUERY, DOCUMENTS))[:2]
    assert_ranked(ranked(rerank(provider, url, DOCUMENTS, top_n=2)), expected)


@pytest.mark.parametrize("provider", ["cohere", "together_ai"])
def test_arerank_is_no_different(provider, url, engine):
    import litellm

    answer = asyncio.run(litellm.arerank(**arguments(provider, url, DOCUMENTS)))
    assert_ranked(ranked(answer), ranking(engine.score(QUERY, DOCUMENTS)))


@each_provider
def test_a_wrong_key_is_its_own_exception(provider, url):
    import litellm

    with pytest.raises(litellm.AuthenticationError, match=WRONG_KEY):
        rerank(provider, url, DOCUMENTS, api_key=WRONG)


@each_provider
def test_images_are_forwarded(provider, url, engine):
    expected = ranking(engine.score(QUERY, DECODED))
    assert_ranked(ranked(rerank(provider, url, PICTURES)), expected)


@pytest.mark.parametrize("provider", ["jina_ai", "voyage", "huggingface"])
def test_an_image_is_a_query_where_it_is_forwarded(provider, url, engine):
    expected = ranking(engine.score({"image": image("red")}, DECODED))
    answer = rerank(provider, url, PICTURES, query={"image": data_url("red")})
    assert_ranked(ranked(answer), expected)


@each_provider
def test_documents_are_read_unless_declined(provider, url):
    for result in rerank(provider, url, DOCUMENTS).results:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    declined = rerank(provider, url, DOCUMENTS, return_documents=False)
    assert all("document" not in result for result in declined.results)


@each_provider
def test_it_reads_what_was_billed(provider, url, engine):
    meta, count = rerank(provider, url, DOCUMENTS).meta, num_tokens(engine)
    if provider == "huggingface":  # its dialect counts no tokens: the client guesses
        assert meta["billed_units"] == {"search_units": 1}
    else:
        assert meta["billed_units"]["total_tokens"] == count
        assert meta["tokens"].get("input_tokens", count) == count


def test_hosted_vllm_sends_content_parts_and_an_instruction(url, engine):
    parts = [{"type": "image_url", "image_url": {"url": data_url("red")}}]
    documents = [{"content": [{"type": "text", "text": "red"}, *parts]}, {"content": parts}, "red"]
    decoded = [{"text": "red", "image": image("red")}, {"image": image("red")}, "red"]
    instruction = "Retrieve images of stars."
    answer = rerank("hosted_vllm", url, documents, instruction=instruction)
    assert_ranked(ranked(answer), ranking(engine.score(QUERY, decoded, instruction)))


def test_hosted_vllm_sends_its_limits(url):
    """Of the ends that are kept, the documents differ in nothing."""
    documents = ["start " * 300 + "the very end", "x " * 300 + "the very end"]
    limits = {"max_tokens_per_doc": 3, "truncation_side": "left"}
    cut = ranked(rerank("hosted_vllm", url, documents, **limits))
    assert cut[0][1] == pytest.approx(cut[1][1], abs=1e-5)
    for fewer in ({}, {"max_tokens_per_doc": 3}, {**limits, "max_tokens_per_query": 2}):
        other = ranked(rerank("hosted_vllm", url, documents, **fewer))
        assert other[0][1] != pytest.approx(cut[0][1], abs=1e-5)


@pytest.mark.parametrize("provider", WITHOUT_NULL)
def test_media_that_fail_are_named_where_the_dialect_has_no_null_score(provider, url):
    import litellm

    with pytest.raises(litellm.BadRequestError, match="JPEG, PNG, .* are read"):
        rerank(provider, url, ["a", BROKEN])


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name not in WITHOUT_NULL])
def test_a_missing_score_is_never_made_one(provider, url):
    """LiteLLM's answers have no room for a null score: it raises, and its message is its own."""
    import litellm

    with pytest.raises(litellm.APIConnectionError, match="valid number|real number"):
        rerank(provider, url, ["a", BROKEN])


def test_huggingface_is_told_of_a_pair_that_is_too_long(url):
    import litellm

    with pytest.raises(litellm.BadRequestError, match="Please reduce the length"):
        rerank("huggingface", url, ["word " * 12_000])
