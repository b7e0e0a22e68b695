"""What one request may ask for: each limit has its status and a sentence that names it.

Bytes of the body, how many documents and media, and a key's own limits: tests/serve/test_app.py.
"""

import base64
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.reranker import Reranker
from shardrank.serve.settings import Limits
from tests.support.serve_app import TINY, running
from tests.support.serve_clients import image
from tests.support.web_site import ok, serving

CLIP = (TINY.parent / "media" / "v2s_24.mp4").read_bytes()  # two seconds
RED, BLUE = image("red"), image("blue")
LIMITS = Limits(
    max_image_pixels=64 * 64 - 1,
    max_video_s=1.0,
    max_text_chars=500,
    max_media_bytes=len(CLIP) + len(RED),
)
WEB = WebMedia(allowed_networks=("127.0.0.0/8",))


def small(**changes: Any) -> RerankerConfig:
    return RerankerConfig(model=str(TINY), device="cpu", num_threads=1, **changes)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(limits=LIMITS, web=WEB, num_fetching=1) as url:
        yield url


def in_data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ask(url: str, documents: list[Any], status: int = 200, **more: Any) -> Any:
    body = {"query": "q", "documents": documents, **more}
    answer = httpx.post(f"{url}/v2/rerank", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def failures(answer: Any) -> dict[int, str]:
    return {each["index"]: each["error"]["code"] for each in answer["results"] if "error" in each}


@pytest.mark.parametrize(
    ("document", "code", "sentence"),
    [
        ({"image": in_data_url(RED, "image/png")}, "image_too_large", "the limit of 4095"),
        (
            {"video": {"frames": [in_data_url(RED, "image/png")] * 2}},
            "image_too_large",
            "the limit of 4095",
        ),
        ({"video": in_data_url(CLIP, "video/mp4")}, "video_too_long", "2 s, over the limit of 1 s"),
        ("a" * 501, "text_too_large", "the limit of 500"),
    ],
)
def test_a_document_over_a_limit_is_its_own_error_or_fails_all(document, code, sentence, url):
    answer = ask(url, ["short", document])
    assert failures(answer) == {1: code}
    assert sentence in answer["results"][-1]["error"]["message"]
    error = ask(url, ["short", document], 400, on_error="fail")["error"]
    assert (error["code"], error["param"]) == (code, "documents[1]")
    assert sentence in error["message"]


SENTENCE = f"the limit of {LIMITS.max_media_bytes:,} bytes together"


def test_media_of_the_body_share_one_limit_of_bytes(url):
    clip, red = in_data_url(CLIP, "video/mp4"), in_data_url(RED, "image/png")
    assert "media_too_large" not in failures(ask(url, [{"video": clip}, {"image": red}])).values()
    answer = ask(url, [{"video": clip}, {"video": clip}, "text"])
    assert failures(answer) == {0: "video_too_long", 1: "media_too_large"}
    assert SENTENCE in answer["results"][-1]["error"]["message"]
    error = ask(url, ["a", {"video": [clip, clip]}], 400, on_error="fail")["error"]
    assert error["param"] == "documents[1]" and SENTENCE in error["message"]


def test_nothing_more_is_fetched_when_the_bytes_are_used_up(url):
    padded = RED + bytes(len(CLIP))
    with serving(lambda path: ok(padded)) as site:
        names = [{"image": f"{site.url}/{number}.png"} for number in range(5)]
        answer = ask(url, [*names, "text"])
        assert len(site.requests) == 2
    assert failures(answer) == {0: "image_too_large"} | dict.fromkeys(
        (1, 2, 3, 4), "media_too_large"
    )
    assert all(SENTENCE in each["error"]["message"] for each in answer["results"][-4:])


def test_a_body_that_does_not_come_is_not_waited_for(url, monkeypatch):
    monkeypatch.setattr("shardrank.serve.gate.gate._BODY_TIMEOUT_S", 0.2)
    place = httpx.URL(url)
    head = f"POST /v2/rerank HTTP/1.1\r\nHost: {place.host}\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection((place.host, place.port), timeout=60) as connection:
        connection.sendall(head.encode())
        answer = b""
        while b"did not come within 0 s" not in answer:
            received = connection.recv(65_536)
            assert received, answer
            answer += received
    assert answer.startswith(b"HTTP/1.1 504")


def test_a_request_that_takes_too_long_is_told_so():
    with running(limits=Limits(timeout_s=1.0)) as url:
        error = ask(url, ["some words " * 300] * 5_000, 504)["error"]
    assert error["code"] == "deadline_exceeded" and "not scored within 1 s" in error["message"]


def test_a_request_over_one_batch_is_split_and_not_refused():
    documents = [f"document {number} " + "word " * (number % 40) for number in range(300)]
    config = small(options=QueryOptions(max_length=400), max_batch_tokens=512)
    with running(reranker=config) as url:
        results = ask(url, documents)["results"]
        metrics = httpx.get(f"{url}/metrics").text.splitlines()
    scores = [each["relevance_score"] for each in sorted(results, key=lambda each: each["index"])]
    assert scores == pytest.approx(Reranker(small()).score("q", documents), abs=1e-5)
    (batches,) = [line for line in metrics if line.startswith("shardrank_batches_total")]
    assert float(batches.split()[-1]) > 10
