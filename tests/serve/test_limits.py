"""What one request may ask for: each limit has its status and a sentence that names it.

Bytes of the body, how many documents and media, and a key's own limits: tests/serve/test_app.py.
"""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.actors.fetch.web import WebMedia
from shardrank.serve.gate.key_file import ApiKey, hash_key
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.settings import Limits
from tests.support.serve_app import TINY, running
from tests.support.serve_clients import image
from tests.support.web_site import ok, serving

CLIP = (TINY.parent / "media" / "v2s_24.mp4").read_bytes()  # two seconds
SLOW, QUICK = "sr-key-of-the-slow-one", "sr-key-of-the-quick-one"
RED, BLUE = image("red"), image("blue")
LIMITS = Limits(
    max_image_pixels=64 * 64 - 1,
    max_video_s=1.0,
    max_text_chars=500,
    max_media_bytes=len(CLIP) + len(RED),
)
SMALL = Limits(
    max_request_pixels=3 * 64 * 64, max_query_chars=1_000, max_rank_fields=3, timeout_s=12.0
)
WEB = WebMedia(allowed_networks=("127.0.0.0/8",))


def small(**changes: Any) -> RerankerConfig:
    return RerankerConfig(model=str(TINY), device="cpu", num_threads=1, **changes)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(limits=LIMITS, web=WEB, num_fetching=1) as url:
        yield url


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    keys = ApiKeys((ApiKey("slow", hash_key(SLOW)), ApiKey("quick", hash_key(QUICK))))
    config = small(max_visual_tokens=100)
    with running(keys, reranker=config, limits=SMALL, web=WEB, num_fetching=8) as url:
        yield url


def in_data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ask(
    url: str, documents: list[Any], status: int = 200, key: str | None = None, **more: Any
) -> Any:
    body = {"query": "q", "documents": documents, **more}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.post(f"{url}/v2/rerank", json=body, headers=headers, timeout=60)
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


def test_small_images_that_become_large_are_refused_before_the_work(strict):
    """min_pixels makes 256 tokens of one image, and no truncation cuts them."""
    wanted = {"min_pixels": 512 * 512, "max_pixels": 512 * 512}
    many = {"image": [in_data_url(RED, "image/png")] * 3}
    answer = ask(strict, ["text", many], key=QUICK, mm_processor_kwargs=wanted)
    assert failures(answer) == {1: "too_many_visual_tokens"}
    assert "768 visual tokens, over the limit of 100" in str(answer["results"][-1]["error"])


def test_the_pixels_of_a_request_are_bounded_by_its_images_headers(strict):
    answer = ask(strict, [{"image": in_data_url(RED, "image/png")}] * 4 + ["text"], key=QUICK)
    assert failures(answer) == {3: "image_too_large"}
    assert "over the limit of 12,288 pixels together" in str(answer["results"][-1]["error"])


def test_a_query_is_bounded_by_how_often_it_is_joined_to_a_document(strict):
    ask(strict, ["a"] * 10, query="q" * 100, key=QUICK)
    error = ask(strict, ["a"] * 11, 422, query="q" * 100, key=QUICK)["error"]
    assert (error["param"], error["code"]) == ("query", "text_too_large")
    assert "at most 1,000 characters, got 1,100" in error["message"]
    own = [{"text": "a", "instruction": "i" * 501}] * 2
    assert ask(strict, own, 422, key=QUICK)["error"]["code"] == "text_too_large"


def test_rank_fields_count_once_and_are_few(strict):
    documents = [{"a": "x", "b": "y"}] * 3
    once = ask(strict, documents, rank_fields=["a"], key=QUICK)
    assert (
        ask(strict, documents, rank_fields=["a"] * 10_000, key=QUICK)["results"]
        == (once["results"])
    )
    error = ask(strict, documents, 422, rank_fields=list("abcd"), key=QUICK)["error"]
    assert (error["param"], error["message"]) == (
        "rank_fields",
        "rank_fields must be at most 3, got 4",
    )


def test_who_names_silent_servers_keeps_nobody_else_from_fetching(strict):
    """Half of the request's 12 s is for fetching; a caller has two of the eight threads."""
    quiet = threading.Event()

    def answer(path: str) -> Iterator[bytes]:
        if path.startswith("/quiet"):
            quiet.wait(30)
        yield from ok(RED)

    with serving(answer) as site, ThreadPoolExecutor(4) as threads:
        silent = [{"image": f"{site.url}/quiet{number}.png"} for number in range(48)]
        slow = [threads.submit(ask, strict, [*silent, "a"], key=SLOW) for _ in range(3)]
        while site.num_connections < 2:
            time.sleep(0.01)
        other = ask(strict, [{"image": f"{site.url}/page.png"}], key=QUICK)
        assert not any(each.done() for each in slow)
        assert site.num_connections == 3
        codes = [failures(each.result(timeout=60)) for each in slow]
        quiet.set()
    assert failures(other) == {}
    assert codes == [dict.fromkeys(range(48), "media_unreachable")] * 3


def test_an_open_server_on_loopback_is_called_by_no_other_name():
    """A page whose own name leads to 127.0.0.1 could read whatever the server answers."""
    with running(is_local=True) as url:
        for path in ("/v1/models", "/health", "/"):
            answer = httpx.get(f"{url}{path}", headers={"Host": "evil.example:8000"})
            assert answer.status_code == 421, answer.text
            assert "localhost and 127.0.0.1 alone" in answer.text
        assert httpx.get(f"{url}/v1/models", headers={"Host": "localhost:1"}).status_code == 200
