"""Fetching from real servers on loopback, which a policy has to allow."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.actors.errors import (
    MediaError,
    MediaForbidden,
    MediaNotFound,
    MediaTooLarge,
    MediaUnreachable,
)
from shardrank.actors.fetch.web import WebMedia, WebReader
from tests.support.web_site import Answer, answering, certificate, ok, redirect, serving


class Names:
    """A resolver that gives one answer after the other, the last for ever, and notes the names."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def loopback(**settings: Any) -> WebMedia:
    return WebMedia(**{"allowed_networks": ("127.0.0.0/8",), "timeout_s": 10.0} | settings)


STRICT = WebReader(WebMedia(timeout_s=10.0))
LOOPBACK = WebReader(loopback())


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": 0},
        {"max_bytes": 1.5},
        {"max_bytes": True},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"timeout_s": float("nan")},
        {"timeout_s": None},
        {"max_redirects": -1},
        {"allowed_networks": ["10.0.0.0/8"]},
        {"allowed_networks": "10.0.0.0/8"},
        {"allowed_networks": (10,)},
        {"allowed_networks": ("10.0.0.1/8",)},
        {"allowed_networks": ("intranet",)},
        {"schemes": ()},
        {"schemes": "https"},
        {"schemes": ("ftp",)},
    ],
)
def test_a_policy_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be .*got"):
        WebMedia(**wrong)


def test_a_body_is_read_to_its_end() -> None:
    body = bytes(range(256)) * 5_000
    with serving(answering(ok(body, "Content-Encoding: identity"))) as site:
        assert LOOPBACK.read(f"{site.url}/a/1.png?size=5#part") == body
    assert site.requests[0].startswith("GET /a/1.png?size=5 HTTP/1.1\r\n")


def test_a_chunked_body_and_one_that_ends_with_the_connection_are_read() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    for answer in (chunked, b"HTTP/1.0 200 OK\r\n\r\nabcde"):
        with serving(answering([answer])) as site:
            assert LOOPBACK.read(site.url) == b"abcde"


def test_a_request_has_nothing_of_ours_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy from the environment would be a way around the checks."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(answering(ok(b"x", "Set-Cookie: a=b"))) as site:
        reader = WebReader(loopback())
        assert [reader.read(f"{site.url}/1"), reader.read(f"{site.url}/2")] == [b"x", b"x"]
    assert site.requests[1].split("\r\n") == [
        "GET /2 HTTP/1.1",
        f"Host: 127.0.0.1:{site.port}",
        "User-Agent: ShardRank",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
        "",
        "",
    ]


def test_the_name_is_sent_and_the_address_connected_to() -> None:
    names = Names(["127.0.0.1"])
    with serving(answering(ok(b"x"))) as site:
        assert WebReader(loopback(), names).read(f"http://Media.Test.:{site.port}/") == b"x"
    assert f"Host: media.test:{site.port}\r\n" in site.requests[0]
    assert names.asked == ["media.test"]


def test_many_threads_read_at_once() -> None:
    barrier = threading.Barrier(16, timeout=30)

    def together(path: str) -> list[bytes]:
        barrier.wait()
        return ok(path.encode())

    with serving(together) as site, ThreadPoolExecutor(16) as pool:
        urls = [f"{site.url}/{index}" for index in range(16)]
        assert list(pool.map(LOOPBACK.read, urls)) == [b"/%d" % index for index in range(16)]


REFUSED = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.8.8.8:{port}/",
    "http://localhost:{port}/",
    "http://localhost.:{port}/",
    "http://LOCALHOST:{port}/",
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[::]:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://１２７.0.0.1:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127%2e0.0.1:{port}/",
    "http://127.0.0.1\\@8.8.8.8:{port}/",
    "http://8.8.8.8@127.0.0.1:{port}/",
    "http://user:word@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: other",
    "http://127.0.0.1:{port}/\0",
    "\thttp://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "unix://127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://[fe80::1]/",
    "http://[fe80::1%25lo]/",
    "http://[ff02::1]/",
    "http://127.0.0.1:22/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:99999/",
]


@pytest.mark.parametrize("form", REFUSED)
def test_a_private_host_is_refused_however_it_is_written(form: str) -> None:
    with serving(answering(ok(b"secret"))) as site, pytest.raises(MediaForbidden):
        STRICT.read(form.format(port=site.port))
    assert site.num_connections == 0


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "::1"]]
)
def test_a_name_with_a_private_address_is_refused(addresses: list[str]) -> None:
    with serving(answering(ok(b"secret"))) as site:
        reader = WebReader(WebMedia(timeout_s=5.0), Names(addresses))
        with pytest.raises(MediaForbidden, match="/1.png: the host is not at a public address$"):
            reader.read(f"http://media.test:{site.port}/1.png")
    assert site.num_connections == 0


def test_a_name_that_changes_its_address_is_looked_up_once() -> None:
    """127.0.0.1 is allowed and stands for a public address, 127.0.0.2 is private."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    policy = loopback(allowed_networks=("127.0.0.1/32",))
    with (
        serving(answering(ok(b"public"))) as public,
        serving(answering(ok(b"secret")), "127.0.0.2", public.port) as private,
    ):
        assert WebReader(policy, names).read(f"http://media.test:{public.port}/") == b"public"
    assert (names.asked, private.num_connections) == (["media.test"], 0)


def test_a_name_that_changes_its_address_before_a_redirect_is_refused() -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"])
    policy = loopback(allowed_networks=("127.0.0.1/32",))
    with (
        serving(answering(redirect("/again"))) as public,
        serving(answering(ok(b"secret")), "127.0.0.2", public.port) as private,
        pytest.raises(MediaForbidden, match="after a redirect: the host is not at a public"),
    ):
        WebReader(policy, names).read(f"http://media.test:{public.port}/")
    assert names.asked == ["media.test"] * 2
    assert (public.num_connections, private.num_connections) == (1, 0)


def test_an_address_that_does_not_answer_gives_way_to_the_next() -> None:
    with serving(answering(ok(b"x"))) as site:
        reader = WebReader(loopback(), Names(["127.0.0.2", "127.0.0.1"]))
        assert reader.read(f"http://media.test:{site.port}/") == b"x"


@contextmanager
def hanging(host: str, port: int) -> Iterator[None]:
    """Connections to it are neither taken nor refused: its queue is full."""
    with socket.create_server((host, port), backlog=0), ExitStack() as waiting:
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((host, port))
        yield


def test_an_address_that_hangs_leaves_time_for_the_next() -> None:
    with serving(answering(ok(b"x"))) as site, hanging("127.0.0.2", site.port):
        reader = WebReader(loopback(timeout_s=2.0), Names(["127.0.0.2", "127.0.0.1"]))
        assert reader.read(f"http://media.test:{site.port}/") == b"x"


def test_addresses_that_all_hang_are_left_at_the_deadline() -> None:
    with serving(answering(ok(b"x"))) as site, hanging("127.0.0.2", site.port):
        reader = WebReader(loopback(timeout_s=0.5), Names(["127.0.0.2"] * 3))
        assert_ends_in_time(reader, f"http://media.test:{site.port}/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status: int) -> None:
    def answer(path: str) -> list[bytes]:
        return redirect("../b?c=d", status) if path.startswith("/a/") else ok(path.encode())

    with serving(answer) as site:
        assert LOOPBACK.read(f"{site.url}/a/1") == b"/b?c=d"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/secret",
        "//127.0.0.2:{port}/secret",
        "http://127.2:{port}/secret",
        "http://localhost.localdomain@127.0.0.2:{port}/secret",
        "http://169.254.169.254/latest/meta-data/secret",
        "http://[::1]:{port}/secret",
        "http://127.0.0.1:22/secret",
        "file:///etc/passwd#secret",
        "ftp://127.0.0.1:{port}/secret",
        "gopher://127.0.0.1:{port}/secret",
        "http://127.0.0.1:{port}/secret\\x",
        "http://[secret",
    ],
)
def test_a_redirect_to_where_nobody_may_go_is_refused(location: str) -> None:
    reader = WebReader(loopback(allowed_networks=("127.0.0.1/32",)))
    places: list[str] = []
    with (
        serving(lambda path: redirect(places[0])) as site,
        serving(answering(ok(b"secret")), "127.0.0.2", site.port) as private,
    ):
        places.append(location.format(port=site.port))
        with pytest.raises(MediaForbidden, match=f"^{site.url}/a: after a redirect: ") as raised:
            reader.read(f"{site.url}/a?b=c")
    assert (site.num_connections, private.num_connections) == (1, 0)
    assert "secret" not in str(raised.value) and "127.0.0.2" not in str(raised.value)


@pytest.mark.parametrize("max_redirects", [0, 1, 3])
def test_a_circle_of_redirects_ends(max_redirects: int) -> None:
    with serving(answering(redirect("/"))) as site:
        reader = WebReader(loopback(max_redirects=max_redirects))
        with pytest.raises(MediaUnreachable, match=f": more than {max_redirects} redirects$"):
            reader.read(site.url)
    assert site.num_connections == max_redirects + 1


def test_as_many_redirects_as_allowed_are_followed() -> None:
    def answer(path: str) -> list[bytes]:
        return ok(b"x") if path == "/111" else redirect(path + "1")

    with serving(answer) as site:
        assert LOOPBACK.read(site.url) == b"x"


def test_a_redirect_without_a_place_is_unreachable() -> None:
    with (
        serving(answering(ok(b"", status="302 Found"))) as site,
        pytest.raises(MediaUnreachable, match="status 302 without a location$"),
    ):
        LOOPBACK.read(site.url)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, MediaNotFound),
        (410, MediaNotFound),
        (500, MediaUnreachable),
        (503, MediaUnreachable),
        (401, MediaUnreachable),
        (403, MediaUnreachable),
        (204, MediaUnreachable),
        (206, MediaUnreachable),
        (304, MediaUnreachable),
    ],
)
def test_another_status_is_an_error_that_repeats_nothing(
    status: int, kind: type[MediaError]
) -> None:
    with (
        serving(answering(ok(b"secret", status=f"{status} Secret"))) as site,
        pytest.raises(kind, match=f"^{site.url}/a: status {status}$"),
    ):
        LOOPBACK.read(f"{site.url}/a?token=hush")


def closed_site() -> str:
    with serving(answering([])) as site:
        return site.url


def test_a_closed_port_is_unreachable() -> None:
    with pytest.raises(MediaUnreachable, match=": the connection failed$"):
        LOOPBACK.read(closed_site())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9 secret\r\n",
        b"secret\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: secret\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsec",
        b"HTTP/1.1 200 OK\r\nA: " + b"secret" * 50_000,
    ],
)
def test_what_is_not_http_or_breaks_off_is_unreachable(answer: bytes) -> None:
    with (
        serving(answering([answer])) as site,
        pytest.raises(MediaUnreachable, match="not HTTP, or breaks off$|connection failed$"),
    ):
        LOOPBACK.read(site.url)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "Deflate"])
def test_a_compressed_answer_is_refused(encoding: str) -> None:
    with (
        serving(answering(ok(b"x", f"Content-Encoding: {encoding}"))) as site,
        pytest.raises(MediaUnreachable, match="the answer is compressed"),
    ):
        LOOPBACK.read(site.url)


def test_a_body_of_exactly_the_limit_is_read() -> None:
    with serving(answering(ok(b"x" * 1_000))) as site:
        assert len(WebReader(loopback(max_bytes=1_000)).read(site.url)) == 1_000


def test_a_length_over_the_limit_is_refused_before_the_body() -> None:
    def answer(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"
        time.sleep(3)

    with serving(answer) as site:
        started = time.monotonic()
        with pytest.raises(MediaTooLarge, match=f"^{site.url}: over the limit of 1000 bytes$"):
            WebReader(loopback(max_bytes=1_000)).read(site.url)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("head", ["Transfer-Encoding: chunked\r\n", ""])
def test_a_body_that_never_ends_is_left_at_the_limit(head: str) -> None:
    sent = []

    def answer(path: str) -> Iterator[bytes]:
        yield f"HTTP/1.1 200 OK\r\n{head}\r\n".encode()
        while True:
            sent.append(1)
            yield (b"1000\r\n" if head else b"") + b"x" * 0x1000 + (b"\r\n" if head else b"")

    with (
        serving(answer) as site,
        pytest.raises(MediaTooLarge, match="over the limit of 1000000 bytes$"),
    ):
        WebReader(loopback(max_bytes=1_000_000)).read(site.url)
    assert len(sent) < 10_000  # the rest is the sockets' buffers


def dripping(text: bytes) -> Iterator[bytes]:
    for index in range(len(text)):
        yield text[index : index + 1]
        time.sleep(0.05)


def silent(path: str) -> Iterator[bytes]:
    time.sleep(3)
    yield b"HTTP/1.1 200 OK\r\n\r\n"


def slow_headers(path: str) -> Iterator[bytes]:
    yield from dripping(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20 + b"\r\n")


def slow_body(path: str) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"
    yield from dripping(b"x" * 60)


def early_hints(path: str) -> Iterator[bytes]:
    """A flood that is never waited for."""
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100


def slow_redirects(path: str) -> Iterator[bytes]:
    time.sleep(0.3)
    yield from redirect("/")


SLOW = [silent, slow_headers, slow_body, early_hints, slow_redirects]


@pytest.mark.parametrize("answer", SLOW, ids=lambda answer: answer.__name__)
def test_a_slow_server_is_left_at_the_deadline(answer: Answer) -> None:
    with serving(answer) as site:
        assert_ends_in_time(WebReader(loopback(timeout_s=0.5, max_redirects=100)), site.url)


def assert_ends_in_time(reader: WebReader, url: str) -> None:
    started = time.monotonic()
    with pytest.raises(MediaUnreachable, match=": the time for fetching it is over$|redirect: the"):
        reader.read(url)
    assert 0.4 < time.monotonic() - started < 1.5


def test_a_server_that_never_begins_tls_is_left_at_the_deadline() -> None:
    with serving(silent) as site:
        url = site.url.replace("http://", "https://")
        assert_ends_in_time(WebReader(loopback(timeout_s=0.5)), url)


def test_a_slow_name_server_is_left_at_the_deadline() -> None:
    done = threading.Event()

    def resolve(host: str) -> list[str]:
        done.wait(5)
        return ["127.0.0.1"]

    assert_ends_in_time(WebReader(loopback(timeout_s=0.5), resolve), "http://media.test/")
    done.set()


def test_a_name_that_does_not_resolve_is_not_found() -> None:
    with pytest.raises(MediaNotFound, match="^http://h.test/: the host's name does not resolve$"):
        WebReader(WebMedia(), Names([])).read("http://h.test/?token=hush")


@pytest.mark.parametrize(
    "url",
    [
        "http://hush:hush@127.0.0.1:{port}/a",
        "http://10.0.0.1/a?token=hush",
        "http://127.0.0.1:{port}/a?token=hush#hush",
        "https://127.0.0.1:{port}/a?token=hush",
        "http://127.0.0.1:22/a?token=hush",
        "http://127.1/a?token=hush",
        "http://127.0.0.1:{port}/a?token=hush hush",
        "http://127.0.0.1:hush/a?token=hush",
    ],
)
def test_no_message_shows_a_secret(url: str) -> None:
    answer = ok(b"hush", "Hush: hush", status="500 hush")
    with serving(answering(answer)) as site, pytest.raises(MediaError) as raised:
        WebReader(loopback(timeout_s=1.0)).read(url.format(port=site.port))
    assert "hush" not in str(raised.value) and "://" in str(raised.value)


@settings(deadline=None)
@given(st.text(max_size=20) | st.text("@:/.[]?#%0127xae \\", max_size=20))
def test_any_url_of_a_private_host_is_forbidden(text: str) -> None:
    with pytest.raises(MediaForbidden):
        PRIVATE.read(f"http://{text}")


PRIVATE = WebReader(WebMedia(), Names(["10.0.0.1"]))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself, for media.test and 127.0.0.1, with its key."""
    return certificate(tmp_path_factory.mktemp("tls") / "both.pem")


@pytest.fixture
def tls(authority: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's context; readers made from now on trust its certificate, as OpenSSL's do."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    return context


def test_https_is_checked_against_the_name(tls: ssl.SSLContext) -> None:
    seen: list[str | None] = []
    tls.sni_callback = lambda _, name, __: seen.append(name)
    with serving(answering(ok(b"x")), tls=tls) as site:
        reader = WebReader(loopback(), Names(["127.0.0.1"]))
        assert reader.read(f"https://media.test:{site.port}/") == b"x"
        assert reader.read(f"https://127.0.0.1:{site.port}/") == b"x"
        with pytest.raises(MediaUnreachable, match="certificate is not valid: Hostname mismatch"):
            reader.read(f"https://other.test:{site.port}/")
    assert (seen, len(site.requests)) == (["media.test", None, "other.test"], 2)


def test_a_certificate_that_nobody_vouches_for_is_refused(tls: ssl.SSLContext) -> None:
    with (
        serving(answering(ok(b"x")), tls=tls) as site,
        pytest.raises(MediaUnreachable, match="is not valid: self-signed certificate"),
    ):
        LOOPBACK.read(site.url)
    assert site.requests == []


def test_what_is_not_tls_is_unreachable() -> None:
    with (
        serving(answering(ok(b"secret"))) as site,
        pytest.raises(MediaUnreachable, match=": no TLS connection could be made$|: the time"),
    ):
        WebReader(loopback(timeout_s=1)).read(site.url.replace("http", "https"))


def test_a_redirect_may_go_up_to_https_but_not_down(tls: ssl.SSLContext) -> None:
    with (
        serving(answering(ok(b"low"))) as low,
        serving(answering(ok(b"high")), tls=tls) as high,
        serving(answering(redirect(f"{low.url}/")), tls=tls) as falling,
        serving(answering(redirect(f"{high.url}/"))) as rising,
    ):
        reader = WebReader(loopback())
        assert reader.read(rising.url) == b"high"
        with pytest.raises(MediaForbidden, match="after a redirect: from https to http$"):
            reader.read(falling.url)
    assert low.num_connections == 0


def test_many_threads_read_over_tls_at_once(tls: ssl.SSLContext) -> None:
    with serving(answering(ok(b"x")), tls=tls) as site, ThreadPoolExecutor(16) as pool:
        reader = WebReader(loopback())
        assert list(pool.map(reader.read, [site.url] * 64)) == [b"x"] * 64


def test_only_schemes_of_the_policy_are_fetched() -> None:
    with (
        serving(answering(ok(b"x"))) as site,
        pytest.raises(MediaForbidden, match="its scheme is not allowed; use https://$"),
    ):
        WebReader(loopback(schemes=("https",))).read(site.url)
    assert site.num_connections == 0


def test_without_httpcore_everything_but_web_media_works() -> None:
    code = """if True:
        import sys
        sys.modules["httpcore"] = None
        from shardrank.actors.config import RerankerConfig
        from shardrank.actors.fetch.reader import MediaReader
        from shardrank.actors.fetch.web import WebMedia
        MediaReader().local_path("setup")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith(
        "shardrank.actors.errors.MediaNotFound: setup: no such file"
    )
