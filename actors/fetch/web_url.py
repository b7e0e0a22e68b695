"""One http(s) URL, read once and strictly: what is checked is what is connected to.

Knows nothing about addresses; fetches nothing.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from shardrank.actors.errors import MediaForbidden

DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_FREE_PORT = 1024
_MAX_CHARS = 8_192  # of a whole URL; what common servers take as a request's line
_PRINTABLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))

_NEVER_IN_A_URL = re.compile(r"[\x00-\x20\x7f-\x9f\\\ud800-\udfff]")
"""Control characters, the space, surrogates, and the backslash, a slash to some parsers."""

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")
_AUTHORITY = re.compile(r"(\[[^\]@]*\]|[^:@\[\]]*)(:[0-9]*)?")


@dataclass(frozen=True, slots=True)
class WebUrl:
    """host: lower-case ASCII without a trailing dot, an IPv6 address without its brackets.
    target: path and query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str, schemes: Collection[str]) -> "WebUrl":
        """Raises MediaForbidden with a sentence that does not repeat the URL."""
        if len(text) > _MAX_CHARS:
            raise MediaForbidden(f"a URL of {len(text)} characters, over the limit of {_MAX_CHARS}")
        if _NEVER_IN_A_URL.search(text):
            raise MediaForbidden("a URL cannot hold spaces, control characters or backslashes")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise MediaForbidden("not a URL that can be read") from error
        if parts.scheme not in schemes:
            allowed = " or ".join(f"{scheme}://" for scheme in schemes)
            raise MediaForbidden(f"its scheme is not allowed; use {allowed}")
        if "@" in parts.netloc:
            raise MediaForbidden("a URL with a user name or password is not fetched")
        if not _AUTHORITY.fullmatch(parts.netloc):
            raise MediaForbidden("not a URL that can be read")
        port = DEFAULT_PORTS[parts.scheme] if port is None else port
        _check_port(port)
        return cls(parts.scheme, _host(parts), port, _target(parts))

    def joined(self, location: str, schemes: Collection[str]) -> "WebUrl":
        """Where a redirect to `location` leads. Raises MediaForbidden as `parse`."""
        if _NEVER_IN_A_URL.search(location):  # urljoin would drop some of them
            raise MediaForbidden("a URL cannot hold spaces, control characters or backslashes")
        try:
            joined = urljoin(f"{self.scheme}://{self.authority}{self.target}", location)
        except ValueError as error:
            raise MediaForbidden("not a URL that can be read") from error
        return self.parse(joined, schemes)

    @property
    def authority(self) -> str:
        """The host and, where it is not the scheme's own, the port, as the header Host has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def shown(url: str) -> str:
    """scheme://host/path for messages: credentials and the query may be secret.

    Of what has no clear host the scheme alone is shown: the rest may be a password.
    """
    scheme, mark, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if not _AUTHORITY.fullmatch(host):
        host, slash, path = "...", "", ""
    text = f"{scheme}{mark}{host}{slash}{path}"
    return re.sub(r"[\x00-\x20\x7f]", lambda match: quote(match[0]), text)


def _check_port(port: int) -> None:
    """The other ports below 1024 belong to mail, shells and the like, some of which would take the
    lines of an HTTP request for their own commands.
    """
    if port < _FIRST_FREE_PORT and port not in DEFAULT_PORTS.values():
        raise MediaForbidden(f"port {port} is not allowed: 80, 443 or one from {_FIRST_FREE_PORT}")


def _host(parts: SplitResult) -> str:
    try:
        return _canonical_host(parts)
    except ValueError as error:  # UnicodeError is one
        raise MediaForbidden("its host is no name, nor an address in its usual form") from error


def _canonical_host(parts: SplitResult) -> str:
    """Raises ValueError. Of an IPv4 address the dotted decimal form alone counts: which others
    there are (octal, hexadecimal, short) is for each system's resolver to say.
    """
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        address = IPv6Address(host)
        if address.scope_id is not None:
            raise ValueError("a zone, which link-local addresses have")
        return str(address)
    host = host.encode("idna").decode("ascii").lower().removesuffix(".")
    if _ENDS_IN_A_NUMBER.fullmatch(host):
        return str(IPv4Address(host))
    if not _NAME.fullmatch(host):
        raise ValueError("not a host name")
    return host


def _target(parts: SplitResult) -> str:
    query = f"?{parts.query}" if parts.query else ""
    return quote(f"{parts.path or '/'}{query}", safe=_PRINTABLE_ASCII)
