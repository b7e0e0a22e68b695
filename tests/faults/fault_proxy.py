"""A proxy on loopback before an S3-protocol server that fails the requests it is told to fail."""

import http.client
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["status", "dropped", "done and dropped", "broken off", "short", "late"]
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of a request.

    status: answered with `status` and an S3 error `code` in XML, without asking the server
    dropped: the connection is closed without an answer, and the server is not asked
    done and dropped: the server does it, but its answer is lost
    broken off: the connection is closed in the middle of the answer's body
    short: half of the body, as if that were all of it
    late: answered after `seconds`
    """

    kind: Kind
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.0


SLOW_DOWN = Fault("status", 503, "SlowDown")
INTERNAL_ERROR = Fault("status", 500, "InternalError")
TOO_MANY = Fault("status", 429, "TooManyRequests")
DROPPED = Fault("dropped")
DONE_AND_DROPPED = Fault("done and dropped")
BROKEN_OFF = Fault("broken off")
SHORT = Fault("short")


@dataclass(frozen=True, slots=True)
class Request:
    """`number` counts the requests to this proxy, from 0."""

    number: int
    method: str
    path: str
    fault: Fault | None = None


Faults = Callable[[Request], Fault | None]


class FaultProxy(ThreadingHTTPServer):
    """`requests` are those that came, in order; `faults` may be replaced at any time."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.faults: Faults = lambda request: None
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.netloc = f"127.0.0.1:{self.server_address[1]}"
        self.query = f"?scheme=http&region=us-east-1&endpoint_override={self.netloc}"

    def record(self, method: str, path: str) -> Fault | None:
        with self._lock:
            request = Request(len(self.requests), method, path)
            fault = self.faults(request)
            self.requests.append(Request(request.number, method, path, fault))
            return fault

    @property
    def num_failed(self) -> int:
        return sum(request.fault is not None for request in self.requests)

    def handle_error(self, *args: object) -> None:
        """A client that left early is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self._body()
        fault = self.server.record(self.command, self.path)
        if fault is not None and fault.kind == "dropped":
            self.close_connection = True
            return
        if fault is not None and fault.kind == "status":
            xml = f"<Error><Code>{fault.code}</Code><Message>as told</Message></Error>".encode()
            self._answer(fault.status, {"Content-Type": "application/xml"}, xml, len(xml))
            return
        status, headers, content = self._forward(body)
        length = int(headers.pop("Content-Length", len(content)))  # of a HEAD: not that of its body
        if fault is not None:
            content, length = self._spoilt(fault, content, length)
        if not self.close_connection or content:
            self._answer(status, headers, content, length)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _spoilt(self, fault: Fault, content: bytes, length: int) -> tuple[bytes, int]:
        if fault.kind == "late":
            threading.Event().wait(fault.seconds)
            return content, length
        if fault.kind == "done and dropped" or not content:
            self.close_connection = True
            return b"", 0
        half = content[: len(content) // 2]
        self.close_connection = fault.kind == "broken off"
        return half, len(half) if fault.kind == "short" else length

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, length: int) -> None:
        with suppress(OSError):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)


@contextmanager
def faulty(target: str) -> Iterator[FaultProxy]:
    with FaultProxy(target) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


def every(n: int, faults: Sequence[Fault]) -> Faults:
    """Every n-th request fails, with each of the faults in turn."""

    def choose(request: Request) -> Fault | None:
        turn, rest = divmod(request.number + 1, n)
        return None if rest else faults[(turn - 1) % len(faults)]

    return choose


def first(n: int, fault: Fault, *methods: str) -> Faults:
    """The first n requests fail, of the given methods (none: of any)."""
    left = n

    def choose(request: Request) -> Fault | None:
        nonlocal left
        if left == 0 or (methods and request.method not in methods):
            return None
        left -= 1
        return fault

    return choose
