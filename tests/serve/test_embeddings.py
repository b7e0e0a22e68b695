"""Vectors over HTTP: each client's forms, held against the engine alone."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from shardrank.actors import Embedder
from shardrank.actors.config import RerankerConfig
from shardrank.cli import main
from shardrank.serve.deployment import AppArguments
from shardrank.serve.settings import Limits, ServeSettings
from tests.support.engine import GOLDEN, TINY
from tests.support.serve_app import running

PAGE = GOLDEN / "media" / "p320x240.png"
PAGE_URL = f"data:image/png;base64,{base64.b64encode(PAGE.read_bytes()).decode()}"
TEXTS = ["What is the capital of France?", "Paris is a city."]
TEXT_MODEL = GOLDEN / "text-embedding" / "tiny"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A reranker and an embedder, both of the tiny checkpoint: the second by another name of it."""
    limits = Limits(max_documents=8, max_media=2)
    with running(embedder=f"{TINY}/", limits=limits) as url:
        yield url


@pytest.fixture(scope="module")
def engine() -> Embedder:
    return Embedder(str(TINY))


def post(url: str, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def vectors(answer: dict[str, Any]) -> np.ndarray:
    assert [each["index"] for each in answer["data"]] == [*range(len(answer["data"]))]
    return np.array([each["embedding"] for each in answer["data"]])


def assert_same(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found), expected, atol=2e-6)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openais_form_gets_the_engines_vectors(url: str, engine: Embedder, path: str) -> None:
    answer = post(url, path, model="any", input=TEXTS)
    assert_same(vectors(answer), engine.embed(TEXTS))
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "embedding")
    tokens = sum(each.num_tokens for each in engine.embed_contents(TEXTS))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert_same(vectors(post(url, path, input=TEXTS[0])), engine.embed(TEXTS[:1]))


def test_base64_is_float32_and_dimensions_are_the_first(url: str, engine: Embedder) -> None:
    answer = post(url, "/v1/embeddings", input=TEXTS, encoding_format="base64", dimensions=16)
    found = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in answer["data"]]
    assert_same(found, engine.embed(TEXTS, dimensions=16))


def test_token_ids_are_the_text_that_they_spell(url: str, engine: Embedder) -> None:
    encoder = engine.preprocessor._encoder._tokenizer
    ids = [encoder.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert_same(vectors(post(url, "/v1/embeddings", input=ids)), engine.embed(TEXTS))
    assert_same(vectors(post(url, "/v1/embeddings", input=ids[0])), engine.embed(TEXTS[:1]))
    for wrong, sentence in [
        ([1, 10**6], "no token has the id 1000000"),
        ([*ids[0], 20_001], "these token ids are no text of this model's tokenizer"),
        ([162], "these token ids are no text of this model's tokenizer"),
    ]:
        told = post(url, "/v1/embeddings", 422, input=[wrong])
        assert told["message"] == f"input[0]: {sentence}"


def test_vllms_chat_is_one_input_with_its_instruction(url: str, engine: Embedder) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": PAGE_URL}},
        {"type": "text", "text": "Figure 1."},
    ]
    chat = [{"role": "system", "content": "Find charts"}, {"role": "user", "content": content}]
    answer = post(url, "/v1/embeddings", messages=chat)
    expected = engine.embed(
        [{"image": PAGE.read_bytes(), "text": "Figure 1."}], "query", "Find charts"
    )
    assert_same(vectors(answer), expected)


def test_objects_of_media_are_inputs_too(url: str, engine: Embedder) -> None:
    answer = post(url, "/v1/embeddings", input=[{"image": PAGE_URL}, "text"])
    assert_same(vectors(answer), engine.embed([{"image": PAGE.read_bytes()}, "text"]))


def test_teis_form_is_bare_vectors(url: str, engine: Embedder) -> None:
    assert_same(post(url, "/embed", inputs=TEXTS), engine.embed(TEXTS))
    assert_same(post(url, "/embed", inputs=TEXTS[0], truncate=True), engine.embed(TEXTS[:1]))


def test_coheres_form_has_vectors_by_type(url: str, engine: Embedder) -> None:
    body = {"model": "any", "input_type": "search_document", "output_dimension": 8}
    kinds = ["float", "base64"]
    answer = post(url, "/v2/embed", texts=TEXTS, embedding_types=kinds, **body)
    expected = engine.embed(TEXTS, dimensions=8)
    assert_same(answer["embeddings"]["float"], expected)
    packed = [np.frombuffer(base64.b64decode(e), "<f4") for e in answer["embeddings"]["base64"]]
    assert_same(packed, expected)
    answer = post(url, "/v2/embed", images=[PAGE_URL], **body)
    page = engine.embed([{"image": PAGE.read_bytes()}], dimensions=8)
    assert_same(answer["embeddings"]["float"], page)
    parts = [{"type": "image_url", "image_url": {"url": PAGE_URL}}]
    answer = post(url, "/v2/embed", inputs=[{"content": parts}], **body)
    assert_same(answer["embeddings"]["float"], page)


def of_openai(url: str, texts: list[str]) -> list[Any]:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    return [each.embedding for each in client.embeddings.create(model="any", input=texts).data]


def of_openai_in_floats(url: str, texts: list[str]) -> list[Any]:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.embeddings.create(model="any", input=texts, encoding_format="float")
    return [each.embedding for each in answer.data]


def of_cohere(url: str, texts: list[str]) -> Any:
    import cohere

    client = cohere.ClientV2(base_url=url, api_key="none")
    answer = client.embed(
        model="any", texts=texts, input_type="search_document", embedding_types=["float"]
    )
    return answer.embeddings.float_


def of_langchain(url: str, texts: list[str]) -> Any:
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    client = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=SecretStr("none"), check_embedding_ctx_length=False
    )
    return client.embed_documents(texts)


def of_llama_index(url: str, texts: list[str]) -> Any:
    from llama_index.embeddings.openai import OpenAIEmbedding

    client = OpenAIEmbedding(model_name="any", api_base=f"{url}/v1", api_key="none")
    return client.get_text_embedding_batch(texts)


CLIENTS = (of_openai, of_openai_in_floats, of_cohere, of_langchain, of_llama_index)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_a_real_client_works_unchanged(url: str, engine: Embedder, client: Any) -> None:
    assert_same(client(url, TEXTS), engine.embed(TEXTS))


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/v1/embeddings", {"input": []}, 400, "input must not be empty"),
        ("/v1/embeddings", {"input": ["a", " "]}, 400, "input[1] says nothing"),
        ("/v1/embeddings", {}, 422, "give either input or messages"),
        ("/v1/embeddings", {"input": "a", "messages": []}, 422, "give either input or messages"),
        ("/v1/embeddings", {"input": "a", "dimensions": 65}, 422, "must be 1 to 64, got 65"),
        ("/v1/embeddings", {"input": ["a"] * 9}, 422, "input must be at most 8, got 9"),
        ("/v1/embeddings", {"input": [{"image": PAGE_URL}] * 3}, 422, "at most 2 images"),
        ("/v1/embeddings", {"input": "a " * 9_000}, 400, "input[0] is longer than 8192 tokens"),
        ("/v1/embeddings", {"input": [True]}, 422, "input[0] must be a string"),
        ("/v1/embeddings", {"messages": [{"role": "x"}]}, 422, "messages[0].role must be one of"),
        (
            "/v1/embeddings",
            {"messages": [{"role": "assistant", "content": "a"}]},
            422,
            "an assistant says nothing here",
        ),
        ("/v1/embeddings", {"input": [{"image": "aGk="}]}, 400, "input[0]"),
        (
            "/v1/embeddings",
            {"input": ["a"] * 8, "instruction": "a " * 7_000_000},
            422,
            "the instruction, once for each input, may have at most",
        ),
        ("/v2/embed", {"texts": [1] * 100_000}, 422, "texts"),
        ("/embed", {"inputs": "a", "normalize": False}, 422, "vectors here have length one"),
        ("/embed", {"inputs": "a", "prompt_name": "x"}, 422, "prompt_name must be query or docu"),
        ("/v2/embed", {"texts": ["a"], "input_type": "q"}, 422, "input_type must be query or doc"),
        ("/v1/embeddings", {"input": "a", "input_type": "q"}, 422, "input_type must be query or"),
        ("/v1/embeddings", {"input": "a", "output_dtype": "int8"}, 422, "output_dtype"),
        ("/embed", {"inputs": "a " * 9_000}, 400, "inputs[0] is longer than 8192 tokens"),
        ("/v2/embed", {"texts": ["a"], "images": []}, 422, "give one of texts, images and inputs"),
        (
            "/v2/embed",
            {"texts": ["a"], "embedding_types": ["int8"]},
            422,
            "embedding_types must be of float, base64, got 'int8'",
        ),
        ("/v2/embed", {"texts": ["a " * 9_000], "truncate": "NONE"}, 400, "texts[0] is longer"),
    ],
)
def test_a_request_that_cannot_be_met_is_told_why(
    url: str, path: str, body: dict[str, Any], status: int, sentence: str
) -> None:
    assert sentence in post(url, path, status, **body)["message"]


def test_what_was_cut_or_not_known_is_said(url: str) -> None:
    answer = post(url, "/v2/embed", texts=["a " * 9_000], seed=1)
    assert answer["meta"]["warnings"] == [
        "field 'seed' is not known and was ignored",
        "1 of 1 inputs were cut",
    ]
    answer = post(url, "/v1/embeddings", input="a", seed=1)
    assert answer["warnings"] == ["field 'seed' is not known and was ignored"]


def test_both_models_are_named_and_both_answer(url: str) -> None:
    models = httpx.get(f"{url}/v1/models").json()["data"]
    assert [model["model_type"] for model in models] == ["rerank", "embed"]
    assert post(url, "/v1/rerank", query="q", documents=["d"])["results"]
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}


QUERIES_OF_OTHERS = [
    {"input_type": "query", "encoding_format": "float"},  # NIM's and Voyage's clients
    {"task": "retrieval.query", "embedding_type": "float"},  # Jina's
]


def test_an_embedder_alone_serves_vectors_and_no_scores() -> None:
    config = RerankerConfig(str(TEXT_MODEL))
    alone = Embedder(str(TEXT_MODEL))
    with running(reranker=config, embedder=str(TEXT_MODEL)) as url:
        info = httpx.get(f"{url}/info").json()
        assert info["model_type"] == {"embedding": {"pooling": "last_token"}}
        assert info["max_input_length"] == 8_192
        assert post(url, "/v1/rerank", 404, query="q", documents=["d"])
        assert_same(post(url, "/embed", inputs=TEXTS), alone.embed(TEXTS))
        asked = alone.embed(TEXTS, "query")
        assert_same(post(url, "/embed", inputs=TEXTS, prompt_name="query"), asked)
        answer = post(url, "/v2/embed", texts=TEXTS, input_type="search_query")
        assert_same(answer["embeddings"]["float"], asked)
        for fields in QUERIES_OF_OTHERS:
            assert_same(vectors(post(url, "/v1/embeddings", input=TEXTS, **fields)), asked)
        answer = post(url, "/v1/embeddings", input=TEXTS, input_type="passage", output_dimension=8)
        assert "warnings" not in answer
        assert_same(vectors(answer), alone.embed(TEXTS, dimensions=8))
        expected = alone.embed(TEXTS, "query", "Find code")
        answer = post(url, "/v1/embeddings", input=TEXTS, instruction="Find code")
        assert_same(vectors(answer), expected)
        own = [{"text": text, "instruction": "Find code", "foo": 1} for text in TEXTS]
        answer = post(url, "/v1/embeddings", input=own)
        assert_same(vectors(answer), expected)
        assert len(answer["warnings"]) == 2
        ids = alone.preprocessor._encoder._tokenizer.encode(TEXTS[0]).ids  # with <|endoftext|>
        answer = post(url, "/v1/embeddings", input=ids)
        assert_same(vectors(answer), alone.embed(TEXTS[:1]))
        answer = post(url, "/v1/embeddings", input=TEXTS, truncate_prompt_tokens=2)
        assert_same(vectors(answer), alone.embed(TEXTS, max_length=2))
        told = post(url, "/v1/embeddings", 400, input=[{"image": PAGE_URL}])
        assert "Qwen3-Embedding reads texts" in told["message"]


def test_settings_say_what_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    both = ServeSettings(RerankerConfig(str(TINY)), embedder=str(TEXT_MODEL))
    assert both.models == {"tiny": "rerank", "tiny-embedding": "embed"}
    both = ServeSettings(RerankerConfig(str(TINY)), served_name="r", embedder=str(TEXT_MODEL))
    assert both.models == {"r": "rerank", "tiny": "embed"}
    assert both.embedding_engine is not None
    assert both.embedding_engine.task == "embed"
    arguments = AppArguments(model=str(TEXT_MODEL), embedder=str(TEXT_MODEL))
    assert arguments.settings().engine is None
    assert main(["serve", f"--embedder={GOLDEN / 'text-reranker' / 'tiny-seq-cls'}"]) == 2
    assert "architecture Qwen3ForSequenceClassification: of a Qwen3-Emb" in capsys.readouterr().err
