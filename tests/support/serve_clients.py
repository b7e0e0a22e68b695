"""What the tests of other people's clients share: a server with a key, and what they ask of it."""

import base64
import contextlib
import io
from collections.abc import Iterator, Sequence

import pytest
from PIL import Image

from shardrank.actors.data import CandidateSet
from shardrank.actors.reranker import Reranker
from shardrank.serve.gate.keys import ApiKey, ApiKeys, hash_key
from tests.support.serve_app import TINY, running

KEY = "sr-a-key-that-is-long-enough"
WRONG = "sr-a-key-that-nobody-knows"
QUERY = "Which planet is red?"
DOCUMENTS = [
    "Venus is the second planet.",
    "Red is a color.",
    "Bananas are yellow.",
    "Mars is red.",
]

Ranking = list[tuple[int, float]]
"""Indices and scores, best first."""

# No telemetry, no traces, no list of prices from a web site: the clients' own switches.
_QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


@contextlib.contextmanager
def server_with_a_key() -> Iterator[str]:
    """Its base URL, in an environment in which clients keep quiet."""
    with (
        pytest.MonkeyPatch.context() as patch,
        running(ApiKeys((ApiKey("alice", hash_key(KEY)),))) as url,
    ):
        for name, value in _QUIET.items():
            patch.setenv(name, value)
        yield url


def tiny_engine() -> Reranker:
    return Reranker(str(TINY), device="cpu", num_threads=1)


def image(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(stream, "PNG")
    return stream.getvalue()


def data_url(color: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(image(color)).decode()}"


PICTURES = ["red", {"image": data_url("red")}, {"image": data_url("blue"), "text": "blue"}]
DECODED = ["red", {"image": image("red")}, {"image": image("blue"), "text": "blue"}]
"""The same, as the engine takes them."""
BROKEN = {"image": "data:image/png;base64,AAAA"}


def ranking(scores: Sequence[float]) -> Ranking:
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def assert_ranked(got: Ranking, expected: Ranking) -> None:
    assert [index for index, _ in got] == [index for index, _ in expected]
    assert [score for _, score in got] == pytest.approx([s for _, s in expected], abs=1e-5)


def num_tokens(engine: Reranker) -> int:
    """Of the query with each of the documents."""
    return sum(
        pair.num_tokens for pair in engine.score_sets([CandidateSet.parse(QUERY, DOCUMENTS)])[0]
    )
