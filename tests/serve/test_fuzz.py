"""Whatever comes over the wire: no 5xx, answers as the OpenAPI document says, healthy afterwards.

Requests are made from the document by schemathesis, and by mutating valid ones (tests/
fuzz_requests.py). A few hundred of them by default, always the same; `pytest -m load` sends 10,000
others to a process of its own, and watches what memory that keeps.
"""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.fuzz_requests import (
    BLUE,
    DASHSCOPE,
    RED,
    VALID,
    Answer,
    Broken,
    Wire,
    broken,
    converse,
    deep,
    exchange,
    mutated,
    random_bodies,
)
from tests.support.fuzz_server import in_its_own_process, in_this_process, resident_bytes

JSON = (("Content-Type", b"application/json"),)
NO_SUCH_OPERATION = (404, 405, 413, 415)  # the last two are found before
OF_THE_PARSER = b"Invalid HTTP request received."
"""uvicorn's answer to what is no HTTP; the application never sees it."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with in_this_process() as url:
        yield url


@pytest.fixture(autouse=True)
def healthy_afterwards(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    yield
    if "url" in request.fixturenames:
        assert_healthy(request.getfixturevalue("url"))
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


def assert_healthy(url: str) -> None:
    """It scores, and nothing of those who left is waiting still."""
    assert httpx.get(f"{url}/health", timeout=30).json() == {"status": "ok"}
    eventually(lambda: metric(url, "shardrank_queue_") == 0)


def metric(url: str, *parts: str) -> float:
    """The sum of all whose line has the parts."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = [line for line in lines if all(part in line for part in parts) and line[0] != "#"]
    return sum(float(line.split()[-1]) for line in found)


def eventually(claim: Callable[[], bool]) -> None:
    """What a client's leaving does, it does shortly after."""
    for _ in range(100):
        if claim():
            return
        time.sleep(0.05)
    assert claim()


@cache
def document(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/openapi.json").json()


@cache
def validator(url: str, path: str, method: str, status: int) -> Draft202012Validator | None:
    """None: the document has no such operation. A status that it does not name fails."""
    operation = document(url)["paths"].get(path, {}).get(method.lower())
    if operation is None:
        return None
    assert str(status) in operation["responses"], f"{method} {path} never answers {status}"
    schema = operation["responses"][str(status)]["content"].get("application/json", {})
    components = {"components": document(url)["components"]}
    return Draft202012Validator(schema.get("schema", {}) | components)


def assert_as_documented(url: str, wire: Wire, answer: Answer) -> None:
    assert answer.status < 500, answer
    if "x-request-id" not in answer.headers:
        assert (answer.status, answer.body) == (400, OF_THE_PARSER)
        return
    path = re.split("[?#]", wire.path, maxsplit=1)[0]
    path = "/" + "/".join(filter(None, SPELLINGS.get(path, path).split("/")))
    method = "GET" if wire.method == "HEAD" else wire.method
    found = validator(url, path, method, answer.status)
    if found is None:
        is_page = path == "/" and answer.status == 200
        assert is_page or answer.status in NO_SUCH_OPERATION, answer
    elif wire.method == "HEAD":
        assert answer.body == b""
    elif answer.headers["content-type"] == "application/json":
        found.validate(strictly_read(answer.body))


SPELLINGS = {
    "/v2/%72erank": "/v2/rerank",
    "/v2/rerank%0a": "/v2/rerank",
    "http://elsewhere.test/rerank": "/rerank",
}
"""Of paths that the routes know as well."""


def strictly_read(body: bytes) -> Any:
    """As a reader who takes neither NaN nor half a surrogate pair."""
    value = json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))
    json.dumps(value, ensure_ascii=False).encode()
    return value


def fuzz(
    strategy: SearchStrategy[Any], send: Callable[[Any], None], num: int, is_fixed: bool = True
) -> None:
    """is_fixed: the same requests each time."""

    @settings(
        max_examples=num,
        derandomize=is_fixed,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def attempt(request: Any) -> None:
        send(request)

    attempt()


class Fuzzer:
    """Sends to one server and counts what it answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.statuses: Counter[int | str] = Counter()

    def send(self, wire: Wire) -> None:
        answer = exchange(self.url, wire.render())
        self.statuses[answer.status] += 1
        assert_as_documented(self.url, wire, answer)

    def send_broken(self, request: Broken) -> None:
        statuses = converse(self.url, request.pieces, request.leaves)
        self.statuses.update(statuses or ["no answer"])
        assert all(status < 500 for status in statuses)

    def send_case(self, case: schemathesis.Case) -> None:
        response = case.call()
        self.statuses[response.status_code] += 1
        case.validate_response(response, checks=DOCUMENTED)

    def from_the_document(self, num: int, is_fixed: bool = True) -> None:
        """num: of each operation with a body, half of them within its schema and half outside."""
        schema = schemathesis.openapi.from_url(f"{self.url}/openapi.json")
        for operation in schema.get_all_operations():
            has_body = operation.ok().method == "post"
            for mode in GenerationMode if has_body else (GenerationMode.POSITIVE,):
                strategy = operation.ok().as_strategy(generation_mode=mode)
                fuzz(strategy, self.send_case, num // 2 if has_body else 1, is_fixed)


DOCUMENTED: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""Not that all data within the schema are accepted: which combinations are, it does not say."""


def test_requests_made_from_the_document(url):
    Fuzzer(url).from_the_document(num=14)


@pytest.mark.parametrize(
    ("strategy", "num"),
    [(mutated(), 400), (random_bodies(), 120)],
    ids=["mutated", "random bodies"],
)
def test_requests_made_of_valid_ones(strategy, num, url):
    fuzzer = Fuzzer(url)
    fuzz(strategy, fuzzer.send, num)
    assert {200, 422} <= set(fuzzer.statuses)  # else it tries too little


def test_bytes_that_are_no_http(url):
    fuzz(broken(), Fuzzer(url).send_broken, 150)


@pytest.mark.parametrize(("path", "body"), VALID)
def test_what_is_mutated_is_valid(path, body, url):
    """Else the fuzzer would see the border alone."""
    answer = exchange(url, Wire("POST", path, JSON, json.dumps(body).encode()).render())
    assert answer.status == 200, answer.body


# What the fuzzer found, and what it might not find each time.

SHAPES = {
    "a type that is a list": '[{"type": []}]',
    "half a surrogate pair in a data URL": r'["a", {"image": "data:\ud800,"}]',
    "half a surrogate pair in a key": r'[{"text": "a", "\ud800": "\ud800"}]',
    "half a surrogate pair in an error": r'[{"\ud800": 1}]',
    "many wrong elements": f"[{'1,' * 140_000}1]",
    "many wrong fields": f'["a"], "rank_fields": [{"1," * 9_999}1]',
    "a number of 5,000 digits": f'["a"], "top_n": {"9" * 5_000}',
}


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank", "/score", DASHSCOPE])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_once_failed(shape, path, url):
    name = "queries" if path == "/score" else "query"
    body = f'{{"{name}": "q", "documents": {SHAPES[shape]}}}'
    if path == DASHSCOPE:
        body = f'{{"input": {body}}}'
    Fuzzer(url).send(Wire("POST", path, JSON, body.encode()))


@pytest.mark.parametrize("levels", [100, 900, 1_100, 5_000, 60_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("path", ["/rerank", "/v1/score", DASHSCOPE])
def test_deep_nesting(path, brackets, levels, url):
    opening, closing = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    inner = deep(levels, opening, closing)
    for body in (
        inner,
        f'{{"query": "q", "input": {inner}, "documents": [{inner}], "x": {inner}}}',
    ):
        Fuzzer(url).send(Wire("POST", path, JSON, body.encode()))


@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, 10**30, 10**400])
@pytest.mark.parametrize("media", [{"image": RED}, {"video": {"frames": [RED, BLUE], "fps": 2}}])
def test_huge_numbers_cost_nothing(number, media, url):
    """min_pixels, with max_pixels as large, once made a small image as large as it was told."""
    names = ["top_n", "max_tokens_per_doc", "max_tokens_per_query", "truncate_prompt_tokens"]
    names += ["priority", "max_chunks_per_doc", "max_frames", "fps"]
    pixels = ["min_pixels", "max_pixels", "total_pixels"]
    bodies: list[dict[str, Any]] = [{name: number} for name in names]
    bodies += [{"mm_processor_kwargs": {name: number}} for name in pixels]
    bodies += [{"mm_processor_kwargs": dict.fromkeys(pixels, number)}]
    for body in bodies:
        data = json.dumps({"query": "q", "documents": [media, "a"]} | body).encode()
        Fuzzer(url).send(Wire("POST", "/v2/rerank", JSON, data))


def test_many_wrong_elements_are_one_error(url):
    """All of them once took 5 KB each of memory, and the event loop for 20 s a megabyte."""
    body = {"query": "q", "documents": [1] * 100_000}
    answer = httpx.post(f"{url}/v1/rerank", json=body)
    assert answer.status_code == 422 and answer.elapsed.total_seconds() < 2


@pytest.mark.parametrize("path", ["/v2/rerank", "/score", DASHSCOPE, "/metrics", "/health"])
def test_a_wrong_method_is_405_in_the_paths_own_words(path, url):
    answer = httpx.request("PATCH", f"{url}{path}")
    assert answer.status_code == 405 and answer.headers["allow"] in ("GET", "POST")
    assert answer.json()["message"] == "Method Not Allowed"
    assert ("code" in answer.json()) == (path == DASHSCOPE)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_ours(url):
    """It was an exception in the log and a 500 in the metrics."""
    counted = partial(metric, url, "shardrank_requests_total", 'route="other"')
    before, failed_before = counted('"499"'), counted('"500"')
    whole = Wire("POST", "/v2/rerank", JSON, b"{}" * 5_000).render()
    converse(url, [whole[:-1]], leaves=False)
    eventually(lambda: counted('"499"') == before + 1)
    assert counted('"500"') == failed_before


def test_a_client_that_leaves_while_it_is_scored_leaves_nothing(url):
    body = {"query": "q", "documents": ["word " * 3_000] * 60}
    request = Wire("POST", "/v2/rerank", JSON, json.dumps(body).encode()).render()
    for _ in range(5):
        converse(url, [request], leaves=True)
    httpx.post(f"{url}/v2/rerank", json={"query": "q", "documents": ["a"]}, timeout=60)


# The long version.

NUM_REQUESTS = 10_000
NUM_WARM_UP = 1_000
MAX_GROWTH = 0.10


@pytest.mark.load
@pytest.mark.timeout(3_000)
def test_ten_thousand_requests_and_the_memory_they_leave(tmp_path):
    log = tmp_path / "log"
    with in_its_own_process(log) as (url, process):
        fuzzer = Fuzzer(url)
        fuzz_by_share(fuzzer, NUM_WARM_UP)
        warm, num_warm = resident_bytes(process), fuzzer.statuses.total()
        fuzz_by_share(fuzzer, NUM_REQUESTS)
        assert_healthy(url)
        grown = resident_bytes(process)
    figures = {
        "num_requests": fuzzer.statuses.total(),
        "num_warm_up": num_warm,
        "statuses": {str(status): num for status, num in fuzzer.statuses.most_common()},
        "rss_warm_mb": warm >> 20,
        "rss_mb": grown >> 20,
    }
    print(json.dumps(figures))
    assert fuzzer.statuses.total() >= NUM_REQUESTS
    assert grown <= warm * (1 + MAX_GROWTH), figures
    assert "Traceback" not in log.read_text("utf-8", "replace")


def fuzz_by_share(fuzzer: Fuzzer, num: int) -> None:
    """Two fifths from the document, two of mutated requests, the rest of bytes of any kind."""
    num_scoring = sum("post" in each for each in document(fuzzer.url)["paths"].values())
    fuzzer.from_the_document(num * 2 // 5 // num_scoring, is_fixed=False)
    fuzz(mutated(), fuzzer.send, num * 2 // 5, is_fixed=False)
    fuzz(random_bodies(), fuzzer.send, num // 10, is_fixed=False)
    fuzz(broken(), fuzzer.send_broken, num // 10, is_fixed=False)
