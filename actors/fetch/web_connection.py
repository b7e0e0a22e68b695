"""One GET over a connection of its own, to an address that was checked, within a deadline.

Needs httpcore, which whoever allows no web media need not have. Knows nothing about policies: which
networks, how long and how much are its caller's to say. Sends no cookies and no credentials, and
takes no proxy from the environment.
"""

import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import httpcore

from shardrank.actors.errors import MediaNotFound, MediaTooLarge, MediaUnreachable
from shardrank.actors.fetch.addresses import Network, Resolve, allowed_addresses
from shardrank.actors.fetch.web_url import WebUrl

_ALPN = ["http/1.1"]
_GONE = (404, 410)
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = (
    (b"User-Agent", b"ShardRank"),
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"identity"),  # a small body could unpack to any size
    (b"Connection", b"close"),
)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """Unlike a limit for each step, it cannot be moved by who does a small step now and then."""

    ends: float  # of time.monotonic()

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Raises TimeoutError where nothing is left."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def bound(self, work: Callable[[], T]) -> T:
        """What `work` gives, by a thread that is left behind where it is too slow: a name's look-up
        cannot be stopped, and ends with the resolver's own patience.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # raised again by result()
                future.set_exception(error)

        threading.Thread(target=run, name="resolve", daemon=True).start()
        return future.result(self.left_s())


@dataclass(frozen=True, slots=True)
class Redirect:
    location: str


class WebConnector:
    """Safe to use from several threads: they share the trusted certificates alone."""

    def __init__(self, networks: Sequence[Network], resolve: Resolve, max_bytes: int) -> None:
        self._networks = networks
        self._resolve = resolve
        self._max_bytes = max_bytes
        self._tls = httpcore.default_ssl_context()  # tens of milliseconds
        self._tls.set_alpn_protocols(_ALPN)

    def deadline(self, seconds: float) -> Deadline:
        return Deadline.after(seconds)

    def get(self, url: WebUrl, deadline: Deadline) -> bytes | Redirect:
        """Raises MediaForbidden, MediaNotFound, MediaUnreachable or MediaTooLarge.

        The sentences repeat nothing that a server said but the status.
        """
        backend = _CheckedBackend(self._networks, self._resolve, self._tls, deadline)
        try:
            return self._answer(url, backend)
        except TimeoutError as error:
            raise MediaUnreachable("the time for fetching it is over") from error
        except httpcore.ProtocolError as error:
            raise MediaUnreachable("the server's answer is not HTTP, or breaks off") from error
        except (httpcore.TimeoutException, httpcore.NetworkError) as error:
            raise MediaUnreachable(_connection_failure(error)) from error

    def _answer(self, url: WebUrl, backend: httpcore.NetworkBackend) -> bytes | Redirect:
        parts = (url.scheme.encode(), url.host.encode(), url.port)
        connection = httpcore.HTTPConnection(
            httpcore.Origin(*parts),
            # Not the shared one, which it would change while other threads use it.
            ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            network_backend=backend,
        )
        address = httpcore.URL(
            scheme=parts[0], host=parts[1], port=url.port, target=url.target.encode()
        )
        headers = [(b"Host", url.authority.encode()), *_HEADERS]
        with connection, connection.stream("GET", address, headers=headers) as response:
            return _read(response, self._max_bytes)


def _read(response: httpcore.Response, max_bytes: int) -> bytes | Redirect:
    if response.status in _REDIRECTS:
        return Redirect(_location(response))
    _check(response, max_bytes)
    body = bytearray()
    for chunk in response.iter_stream():
        body += chunk
        _check_size(len(body), max_bytes)
    return bytes(body)


def _location(response: httpcore.Response) -> str:
    found = _header(response, b"location")
    if not found:
        raise MediaUnreachable(f"status {response.status} without a location")
    return found[0].decode("utf-8", "surrogateescape")  # what is not UTF-8 is refused as a URL


def _check(response: httpcore.Response, max_bytes: int) -> None:
    if response.status in _GONE:
        raise MediaNotFound(f"status {response.status}")
    if response.status != 200:
        raise MediaUnreachable(f"status {response.status}")
    encodings = {encoding.strip().lower() for encoding in _header(response, b"content-encoding")}
    if encodings - {b"", b"identity"}:
        raise MediaUnreachable("the answer is compressed, which was not asked for")
    for length in _header(response, b"content-length"):
        _check_size(int(length), max_bytes)


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise MediaTooLarge(f"over the limit of {max_bytes} bytes")


def _header(response: httpcore.Response, name: bytes) -> list[bytes]:
    return [value for key, value in response.headers if key.lower() == name]


def _connection_failure(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(error, httpcore.TimeoutException):
        return "the time for fetching it is over"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return "no TLS connection could be made"
    return "the connection failed"


class _CheckedBackend(httpcore.NetworkBackend):
    """Looks a host up once, and connects to nothing but the addresses that were checked then.

    TLS goes on with the host's name, which is what its certificate is for.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        resolve: Resolve,
        tls: ssl.SSLContext,
        deadline: Deadline,
    ) -> None:
        self._networks = networks
        self._resolve = resolve
        self._tls = tls
        self._deadline = deadline
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._deadline.bound(
            lambda: allowed_addresses(host, self._networks, self._resolve)
        )
        failure: Exception | None = None
        for index, address in enumerate(addresses):
            # An address that never answers leaves the others their share of the time.
            share_s = self._deadline.left_s() / (len(addresses) - index)
            try:
                stream = self._inner.connect_tcp(str(address), port, timeout=share_s)
                return _DeadlineStream(stream, self._tls, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure


class _DeadlineStream(httpcore.NetworkStream):
    """Every wait ends at the deadline, whatever httpcore's own limits for each of them are."""

    def __init__(
        self, stream: httpcore.NetworkStream, tls: ssl.SSLContext, deadline: Deadline
    ) -> None:
        self._stream = stream
        self._tls = tls
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left_s())

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """TLS begins with the shared context in the place of the connection's own."""
        try:
            left_s = self._deadline.left_s()
        except TimeoutError:
            self.close()
            raise
        stream = self._stream.start_tls(self._tls, server_hostname, left_s)
        return _DeadlineStream(stream, self._tls, self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
