"""Real servers on loopback that answer whatever a test says, for the tests of fetching."""

import datetime
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

Answer = Callable[[str], Iterable[bytes]]
"""A path to the bytes of the answer, piece by piece."""


class Site(socketserver.ThreadingTCPServer):
    """A server on loopback; `requests` are the heads that it was sent, `num_connections` all."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Answer, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.answer = answer
        self.tls = tls
        self.requests: list[str] = []
        self.num_connections = 0
        super().__init__((host, port), _Handler)
        self.host, self.port = self.server_address[:2]
        self.url = f"{'https' if tls else 'http'}://{self.host}:{self.port}"


class _Handler(socketserver.BaseRequestHandler):
    server: Site

    def handle(self) -> None:
        self.server.num_connections += 1
        tls = self.server.tls
        with suppress(OSError):  # the reader left, as it should
            if tls is None:
                self._converse(self.request)
            else:
                with tls.wrap_socket(self.request, server_side=True) as wrapped:
                    self._converse(wrapped)

    def _converse(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := connection.recv(65_536)):
                return
            head += data
        self.server.requests.append(head.decode())
        for piece in self.server.answer(head.split()[1].decode()):
            connection.sendall(piece)


@contextmanager
def serving(
    answer: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[Site]:
    with Site(answer, host, port, tls) as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()


def ok(body: bytes, *headers: str, status: str = "200 OK") -> list[bytes]:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return ["\r\n".join(lines).encode() + body]


def redirect(location: str, status: int = 302) -> list[bytes]:
    return ok(b"elsewhere", f"Location: {location}", status=f"{status} Moved")


def answering(pieces: Iterable[bytes]) -> Answer:
    return lambda path: pieces


def certificate(path: Path) -> Path:
    """Writes a certificate that signs itself, for media.test and 127.0.0.1, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "media.test")])
    names = [x509.DNSName("media.test"), x509.IPAddress(ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path
