"""Media over http(s), fetched as a policy allows.

A URL comes from a stranger: it must not reach what the stranger cannot, nor cost more time and
memory than the policy says. Knows nothing about what the bytes mean.
"""

import math
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from shardrank.actors.errors import MediaError, MediaForbidden, MediaUnreachable
from shardrank.actors.fetch.addresses import Resolve, resolve_host
from shardrank.actors.fetch.web_url import DEFAULT_PORTS, WebUrl, shown

if TYPE_CHECKING:
    from shardrank.actors.fetch.web_connection import Deadline


@dataclass(frozen=True, slots=True)
class WebMedia:
    """What may be fetched over http(s). Raises ValueError on a value out of range.

    timeout_s: for one fetch as a whole: names, redirects, headers and body.
    allowed_networks: networks in CIDR notation that may be reached although they are not public,
        such as that of an intranet's media server.
    """

    max_bytes: int = 64 << 20
    timeout_s: float = 20.0
    max_redirects: int = 3
    allowed_networks: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("http", "https")

    def __post_init__(self) -> None:
        _check_whole("max_bytes", self.max_bytes, lowest=1)
        _check_whole("max_redirects", self.max_redirects, lowest=0)
        value = self.timeout_s
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < float("inf"):
            raise ValueError(f"timeout_s must be a number above zero, got {value!r}")
        _check_networks(self.allowed_networks)
        if not isinstance(self.schemes, tuple) or not self.schemes:
            raise ValueError(f"schemes must be a tuple that is not empty, got {self.schemes!r}")
        for scheme in self.schemes:
            if scheme not in DEFAULT_PORTS:
                raise ValueError(f"schemes must be of http and https, got {scheme!r}")


def _check_whole(name: str, value: int, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name} must be a whole number, at least {lowest}, got {value!r}")


def _check_networks(networks: tuple[str, ...]) -> None:
    if not isinstance(networks, tuple) or not all(isinstance(each, str) for each in networks):
        raise ValueError(f"allowed_networks must be a tuple of strings, got {networks!r}")
    for network in networks:
        try:
            ip_network(network)
        except ValueError as error:
            raise ValueError(
                f"allowed_networks must be networks such as 10.1.0.0/16, got {network!r}: {error}"
            ) from error


class WebReader:
    """Fetches media as `policy` allows; safe to call from several threads."""

    def __init__(self, policy: WebMedia, resolve: Resolve = resolve_host) -> None:
        # Here, because httpcore is only for those who allow web media.
        from shardrank.actors.fetch.web_connection import WebConnector

        networks = [ip_network(each) for each in policy.allowed_networks]
        self._policy = policy
        self._connector = WebConnector(networks, resolve, policy.max_bytes)

    def read(self, url: str, within_s: float = math.inf) -> bytes:
        """Raises MediaForbidden (then nothing was sent to that place), MediaNotFound,
        MediaUnreachable or MediaTooLarge. Messages show the URL without its query.

        within_s: where it is less than the policy's time for one fetch.
        """
        try:
            deadline = self._connector.deadline(min(self._policy.timeout_s, within_s))
            return self._follow(WebUrl.parse(url, self._policy.schemes), deadline)
        except MediaError as error:
            raise type(error)(f"{shown(url)}: {error}") from error

    def _follow(self, url: WebUrl, deadline: "Deadline") -> bytes:
        """Messages do not say where a redirect leads: a private server may have named the place."""
        answer = self._connector.get(url, deadline)
        try:
            for _ in range(self._policy.max_redirects):
                if isinstance(answer, bytes):
                    break
                url = self._redirected(url, answer.location)
                answer = self._connector.get(url, deadline)
        except MediaError as error:
            raise type(error)(f"after a redirect: {error}") from error
        if isinstance(answer, bytes):
            return answer
        raise MediaUnreachable(f"more than {self._policy.max_redirects} redirects")

    def _redirected(self, url: WebUrl, location: str) -> WebUrl:
        target = url.joined(location, self._policy.schemes)
        if (url.scheme, target.scheme) == ("https", "http"):
            raise MediaForbidden("from https to http")
        return target
