"""Requests that no client would send: mutations of valid ones, and bytes that are no HTTP at all.

Requests are written to a socket as they are: a client library would refuse to send most of them.
"""

import base64
import http.client
import io
import json
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from hypothesis import strategies as st
from PIL import Image

DASHSCOPE = "/api/v1/services/rerank/text-rerank/text-rerank"
TIMEOUT_S = 30.0


def image(color: str, size: tuple[int, int] = (40, 40)) -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


RED, BLUE = image("red"), image("blue")
_PARTS = [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": RED}}]
_SIDES = ["a text", {"text": "t", "image": RED}, {"content": _PARTS}, _PARTS]
_VIDEO = {"video": {"frames": [RED, BLUE], "fps": 2.0}}
_OPTIONS = {
    "model": "m",
    "instruction": "Find it.",
    "max_tokens_per_doc": 5,
    "truncate_prompt_tokens": 200,
    "truncation_side": "left",
    "use_activation": True,
    "mm_processor_kwargs": {"min_pixels": 4_096, "max_pixels": 9_000, "fps": 1.0},
    "on_error": "null",
    "priority": 1,
    "user": "u",
    "request_id": "r",
}
_RERANK = {"query": "q", "documents": ["a", "b"]}
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/rerank", {"query": "q", "texts": ["a", "b"], "raw_scores": False, "return_text": True}),
    ("/rerank", {**_RERANK, "top_n": 1, "return_documents": True}),
    ("/v1/rerank", {"query": {"text": "q"}, "documents": _SIDES, **_OPTIONS}),
    ("/v1/reranks", {"query": "q", "documents": [{"a": "b", "c": "d"}], "rank_fields": ["a"]}),
    ("/v2/rerank", {"query": {"image": RED}, "documents": [_VIDEO, "b"], "max_frames": 2}),
    ("/infinity/rerank", {**_RERANK, "raw_scores": True, "return_documents": True}),
    ("/sglang/v1/rerank", {**_RERANK, "top_n": 2, "instruct": "i"}),
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}], "truncate": "END"}),
    ("/v1/reranking", {"query": "q", "input": ["a", "b"], "top_k": 1, "return_input": True}),
    ("/reranking", {**_RERANK, "texts": True, "min_score": 0.5}),
    ("/v1/rerank", {"query": "q", "documents": {"content": _PARTS}, "property": "p"}),
    ("/score", {"queries": ["q", "p"], "documents": ["a", "b"], "activation": False}),
    ("/v1/score", {"data_1": {"content": _PARTS}, "data_2": ["a", {"content": _PARTS}]}),
    (DASHSCOPE, {"input": {"query": "q", "documents": [{"text": "a"}]}, "parameters": {"fps": 1}}),
]


@dataclass(frozen=True, slots=True, repr=False)
class Wire:
    """One request as it goes over the wire, but for its host, its end and its length."""

    method: str
    path: str
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""

    def __repr__(self) -> str:
        return f"<{len(self.body)} bytes of body: {self.render()[:1_500]!r}>"

    def render(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1".encode("latin-1"), b"Host: fuzz.test"]
        lines += [name.encode() + b": " + value for name, value in self.headers]
        lines += [b"Connection: close", f"Content-Length: {len(self.body)}".encode()]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def exchange(url: str, request: bytes) -> Answer:
    """The answer to a whole request. Raises OSError or HTTPException where there is none."""
    with _connection(url) as connection:
        connection.sendall(request)
        method = request.split(b" ", 1)[0].decode("latin-1")
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, body)


def converse(url: str, pieces: Sequence[bytes], leaves: bool) -> list[int]:
    """The statuses of whatever is answered to bytes that may be no request, until it ends.

    leaves: the client goes without reading; else it says that nothing more will come.
    """
    with _connection(url) as connection:
        heard = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            if leaves:
                return []
            heard += _heard_soon(connection)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65_536):
                heard += data
        except TimeoutError:
            raise
        except OSError:  # the server may end it in the middle
            pass
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard)]


def _heard_soon(connection: socket.socket) -> bytes:
    """What is answered before the server learns that nothing more will come."""
    connection.settimeout(0.1)
    try:
        return connection.recv(65_536)
    except TimeoutError:
        return b""
    finally:
        connection.settimeout(TIMEOUT_S)


def _connection(url: str) -> socket.socket:
    place = urlsplit(url)
    assert place.hostname and place.port
    return socket.create_connection((place.hostname, place.port), timeout=TIMEOUT_S)


# Values that JSON can hold and that nobody expects.

_NUMBERS = st.one_of(
    st.sampled_from([0, -1, 2**31, -(2**31) - 1, 2**63, 2**64, 10**40, 1e308, -1e-308, 5e-324]),
    st.integers(),
    st.floats(),  # NaN and infinity, which Python writes although JSON has none
)
_TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "\0",
            "\ud800",
            "\U0001f600\u202e",
            "<|image_pad|><|im_end|>",
            "a " * 2_000,
            "x" * 30_000,
            "null",
            "http://127.0.0.1:1/x.png",
            "file:///etc/passwd",
            "data:,",
            "data:\ud800,\udfff",
            "data:image/png;base64,AAAA",
            RED,
            RED[:90],
        ]
    ),
    st.text(st.characters(codec=None), max_size=30),
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)
_NAMES = st.one_of(
    st.sampled_from(sorted({key for _, body in VALID for key in body})),
    st.sampled_from(
        ["type", "text", "image", "video", "content", "url", "frames", "fps", "image_url"]
    ),
    _TEXTS,
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(_NAMES, inner, max_size=5)
    ),
    max_leaves=12,
)


def deep(levels: int, opening: str, closing: str) -> str:
    return opening * levels + "1" + closing * levels


# Mutations: each draws what it changes.

Draw = Callable[[st.SearchStrategy[Any]], Any]


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value within a JSON value stands, outermost first."""
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    inner = [found for key in keys for found in _places(value[key], (*place, key))]
    return [place, *inner]


def _like(value: Any) -> st.SearchStrategy[Any]:
    """Others of its type: what passes the border and is met further in."""
    if isinstance(value, bool | None):
        return st.booleans()
    if isinstance(value, str):
        return _TEXTS
    if isinstance(value, int | float):
        return _NUMBERS
    if isinstance(value, list):
        return st.permutations(value)
    return st.just({})


def _mutated(draw: Draw, value: Any) -> Any:
    """A deep copy with one value replaced, removed, repeated, or wrapped."""
    value = json.loads(json.dumps(value))
    place = draw(st.sampled_from(_places(value)))
    if not place:
        return draw(_VALUES)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    key = place[-1]
    match draw(st.sampled_from(["replace", "null", "remove", "add", "repeat", "wrap"])):
        case "replace":
            parent[key] = draw(st.one_of(_like(parent[key]), _VALUES))
        case "null":
            parent[key] = None
        case "remove":
            del parent[key]
        case "add" if isinstance(parent, dict):
            parent[draw(_NAMES)] = draw(_VALUES)
        case "repeat" if isinstance(parent, list):
            parent.extend(parent[key : key + 1] * draw(st.integers(1, 80)))
        case _:
            parent[key] = draw(st.sampled_from([[parent[key]], {"content": parent[key]}]))
    return value


def _written(draw: Draw, value: Any) -> bytes:
    """As JSON, now and then with a key twice, too deep, in another encoding, or damaged."""
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    match draw(st.sampled_from(["plain"] * 12 + ["twice", "deep", "encoding", "damaged"])):
        case "twice" if text.startswith('{"'):
            text = f'{{"query": {json.dumps(draw(_SCALARS))}, {text[1:]}'
        case "deep" if text.startswith('{"'):
            brackets = draw(st.sampled_from([("[", "]"), ('{"text":', "}")]))
            inner = deep(draw(st.sampled_from([10, 500, 2_000, 50_000])), *brackets)
            text = f'{{"{draw(st.sampled_from(["query", "documents", "x"]))}": {inner}, {text[1:]}'
        case "encoding":
            return text.encode(draw(st.sampled_from(["utf-16", "utf-32", "latin-1"])), "replace")
        case "damaged":
            return _damaged(draw, text.encode("utf-8", "surrogatepass"))
    return text.encode("utf-8", "surrogatepass")


def _damaged(draw: Draw, data: bytes) -> bytes:
    start = draw(st.integers(0, len(data)))
    stop = min(len(data), start + draw(st.integers(0, 8)))
    return data[:start] + draw(st.binary(max_size=8)) + data[stop:]


_JSON = (("Content-Type", b"application/json"),)
_CONTENT_TYPES = [
    b"application/json; charset=utf-16",
    b"application/vnd.api+json",
    b"text/plain",
    b"multipart/form-data; boundary=x",
    b"application/x-www-form-urlencoded",
    b"",
    b"\xff/\xfe",
    b"application/json" * 1_000,
]
_HEADER_VALUES = st.one_of(
    st.binary(max_size=40).map(lambda value: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value)),
    st.sampled_from(
        [b"", b" ", b"a" * 50_000, b"\xff" * 300, b"Bearer ", b"Basic !!!", b"0", b"-1"]
    ),
)
_HEADER_NAMES = [
    "X-Request-Id",
    "Authorization",
    "Api-Key",
    "X-API-Key",
    "Accept",
    "Accept-Encoding",
    "Content-Encoding",
    "Content-Type",
    "Cookie",
    "Expect",
    "Forwarded",
    "If-None-Match",
    "Origin",
    "Range",
    "X-Forwarded-Proto",
    "X-HTTP-Method-Override",
]
_QUERY_STRINGS = [
    "?",
    "?a",
    "?a=%ff&a=%00",
    "?query=x&documents=y",
    "?%zz",
    "?" + "a" * 20_000,
    "#f",
]
_PATHS = [
    "/", "//", "/%", "/%ff", "/%00", "/%zz", "/v2/rerank/", "//v2/rerank", "/v2/%72erank",
    "/../v2/rerank", "/v2/rerank%00", "/v2/rerank%0a", "/rerank;a=1", "/*", "*",
    "http://elsewhere.test/rerank", "/" + "a" * 20_000, "/nothing", "/metrics", "/health",
]  # fmt: skip
_METHODS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "post", "FOO"]


@st.composite
def mutated(draw: Draw) -> Wire:
    """A valid request with up to three values of its body changed, and seldom its envelope."""
    path, body = draw(st.sampled_from(VALID))
    value: Any = body
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        value = _mutated(draw, value)
    return _in_envelope(draw, Wire("POST", path, _JSON, _written(draw, value)))


@st.composite
def random_bodies(draw: Draw) -> Wire:
    """Bytes of any kind as a request's body."""
    path, valid = draw(st.sampled_from(VALID))
    kinds = [
        st.binary(max_size=300),
        _VALUES.map(lambda value: json.dumps(value).encode()),
        st.sampled_from([b"{", b"[]", b"null", b"\xef\xbb\xbf{}", b"0" * 5_000, b"[" * 200_000]),
        st.just(json.dumps(valid).encode()),
    ]
    body = draw(st.one_of(*kinds))
    kind = draw(st.sampled_from([b"application/json", *_CONTENT_TYPES]))
    return _in_envelope(draw, Wire("POST", path, (("Content-Type", kind),), body))


def _in_envelope(draw: Draw, wire: Wire) -> Wire:
    match draw(st.sampled_from(["as it is"] * 12 + ["method", "path", "query", "headers"])):
        case "method":
            return replace(wire, method=draw(st.sampled_from(_METHODS)))
        case "path":
            return replace(wire, path=draw(st.sampled_from(_PATHS)))
        case "query":
            return replace(wire, path=wire.path + draw(st.sampled_from(_QUERY_STRINGS)))
        case "headers":
            pairs = st.tuples(st.sampled_from(_HEADER_NAMES), _HEADER_VALUES)
            return replace(wire, headers=wire.headers + tuple(draw(st.lists(pairs, max_size=4))))
    return wire


@dataclass(frozen=True, slots=True)
class Broken:
    """Bytes that may be no HTTP, and whether the client leaves without reading."""

    pieces: tuple[bytes, ...]
    leaves: bool


@st.composite
def broken(draw: Draw) -> Broken:
    """Requests broken off, damaged, chunked wrongly, of two lengths, or followed by garbage."""
    path, body = draw(st.sampled_from(VALID))
    data = json.dumps(body).encode()
    whole = Wire("POST", path, _JSON, data).render()
    head, _, _ = whole.replace(b"Connection: close\r\n", b"").rpartition(b"Content-Length")
    match draw(st.sampled_from(["cut", "damaged", "chunked", "lengths", "pipelined", "garbage"])):
        case "cut":
            pieces = [whole[: draw(st.integers(0, len(whole)))]]
        case "damaged":
            pieces = [_damaged(draw, whole)]
        case "chunked":
            size = draw(st.sampled_from([b"%x" % len(data), b"5", b"zz", b"-1", b"f" * 20, b""]))
            end = draw(st.sampled_from([b"\r\n0\r\n\r\n", b"\r\n", b"", b"\r\n0\r\nX: y"]))
            pieces = [head + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n", data + end]
        case "lengths":
            length = draw(st.sampled_from([b"5", b"-1", b"1e9", b"9" * 30, b"", b"\xb2", b"1, 1"]))
            pieces = [head + b"Content-Length: " + length + b"\r\n\r\n" + data]
        case "pipelined":
            first = whole.replace(b"Connection: close\r\n", b"")
            pieces = [first, draw(st.sampled_from([first, b"GARBAGE\r\n\r\n", b"\0\xff", whole]))]
        case _:
            pieces = [draw(st.binary(max_size=200)) + draw(st.sampled_from([b"", b"\r\n\r\n"]))]
    return Broken(tuple(pieces), draw(st.booleans()))
