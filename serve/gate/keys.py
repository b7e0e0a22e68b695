"""A caller: whose key its request has, how often and how many at once that key may ask.

Knows nothing about HTTP frameworks: headers are a mapping. How keys are written is
serve/gate/key_file.py's. Counts of a key's requests are of this process alone: two servers with the
same keys admit twice as much.
"""

import base64
import hmac
import ipaddress
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardrank.serve.errors import TooManyRequests, Unauthorized
from shardrank.serve.gate.key_file import ApiKey, hash_key, read_keys, refuse_duplicates

logger = logging.getLogger(__name__)

ANONYMOUS = ApiKey("anonymous", "0" * 64)
MAX_HEADER_CHARACTERS = 4096  # the longest key in base64, with its user name
_LOOK_EVERY_S = 1.0

NO_KEY = "This server needs an API key: send the header 'Authorization: Bearer KEY'"
WRONG_KEY = "The API key is not one that this server knows"
BAD_BASIC = "The Authorization header's Basic credentials are not base64 of 'user:password'"

# A key that was quiet may send this many seconds' worth of its requests at once: enough for a page
# that asks for several rankings, too few to spend a whole minute's in one instant.
BURST_S = 10
ROUNDING = 1e-6  # of a request: who waits exactly retry_after_s is not refused for a float's sake
CONCURRENT_RETRY_S = 1.0  # when a running request will end is not known


class ApiKeys:
    """The keys of one endpoint, those of its file as it is now: who is taken out is out within a
    second. No keys and not open is a ValueError, so that none is by accident.

    is_open: anybody may call, and check never refuses.
    """

    def __init__(
        self, others: tuple[ApiKey, ...], is_open: bool = False, path: str | Path | None = None
    ) -> None:
        self._others = others
        self._path = path
        self._version = self._looked()
        self._looked_at = time.monotonic()
        self.is_open = is_open
        self.keys = self._read()
        if is_open == bool(self.keys):
            raise ValueError(f"is_open must be {not self.keys} with {len(self.keys)} keys")

    @classmethod
    def open(cls) -> "ApiKeys":
        return cls((), is_open=True)

    @classmethod
    def of(cls, path: str | Path | None, others: tuple[ApiKey, ...]) -> "ApiKeys":
        """Those of a file and others; open without either."""
        return cls(others, is_open=path is None and not others, path=path)

    def check(self, headers: Mapping[str, str]) -> ApiKey:
        """The caller's key. Unauthorized without one, or with a wrong one.

        headers: names in any case where the mapping ignores it (starlette's does), else lower.
        """
        if self.is_open:
            return ANONYMOUS
        if self._path is not None and time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._look()
        given = _given_key(headers)
        if not given:
            raise Unauthorized(NO_KEY)
        key = _find(hash_key(given), self.keys)
        if key is None:
            raise Unauthorized(WRONG_KEY)
        return key

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        version = self._looked()
        if version == self._version:
            return
        self._version = version
        try:
            self.keys = self._read()
        except ValueError as error:  # of a file that is being written, say
            logger.error("%s; the keys of before hold", error)

    def _looked(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path or "")  # there is no "": None
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read(self) -> tuple[ApiKey, ...]:
        keys = (*([] if self._path is None else read_keys(self._path)), *self._others)
        refuse_duplicates(keys, "")
        return keys


def _find(digest: str, keys: Iterable[ApiKey]) -> ApiKey | None:
    """Compares with every key, also after a match: the time taken tells nothing of the hashes."""
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.sha256):
            found = key
    return found


def _given_key(headers: Mapping[str, str]) -> str:
    """The first of these headers that is there counts alone; "" without any."""
    for name in ("authorization", "api-key", "x-api-key"):
        value = headers.get(name)
        if value is None:
            continue
        if len(value) > MAX_HEADER_CHARACTERS or not value.isascii():
            raise Unauthorized(WRONG_KEY)
        return _authorization_key(value.strip()) if name == "authorization" else value.strip()
    return ""


def _authorization_key(value: str) -> str:
    scheme, _, credentials = value.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        return _basic_key(credentials.strip())
    return value  # a bare key: llama-index's client of text-embeddings-inference


def _basic_key(credentials: str) -> str:
    """The password, or the user name without one: what people type where a browser asks them."""
    try:
        user_and_password = base64.b64decode(credentials, validate=True)
    except ValueError:
        raise Unauthorized(BAD_BASIC) from None
    user, _, password = user_and_password.decode("latin-1").partition(":")  # takes any bytes
    return password or user


def check_exposed(host: str, keys: ApiKeys) -> None:
    """ValueError where other machines may reach a server at host that asks nobody for a key."""
    if keys.is_open and not _is_loopback(host):
        raise ValueError(
            f"host {host!r} can be reached from other machines, and there are no API keys: "
            "give keys, or listen on 127.0.0.1"
        )


def is_local_name(authority: str) -> bool:
    """Whether a Host header (a name or address, perhaps with a port) is one of loopback's."""
    host = re.sub(r":\d*$", "", authority).removeprefix("[").removesuffix("]")
    return _is_loopback(host)


def _is_loopback(host: str) -> bool:
    """A name other than localhost may resolve to anything: it is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def burst(requests_per_minute: int) -> float:
    """What a full bucket holds, in requests: a sixth of a minute's, and at least one.

    So no window of 60 s admits more than requests_per_minute + burst.
    """
    return max(1.0, requests_per_minute * BURST_S / 60)


@dataclass(slots=True)
class _KeyUsage:
    """One key's: tokens is as of counted_at; since then it has grown."""

    tokens: float = math.inf  # a new bucket is full: the next count caps it
    counted_at: float = 0.0
    num_running: int = 0


class RateLimiter:
    """How often and how many at once each key may call: a token bucket and a count of running
    requests. clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._usages: dict[str, _KeyUsage] = {}  # by the key's name

    @contextmanager
    def admit(self, key: ApiKey) -> Iterator[None]:
        """Around one request. TooManyRequests on entering says which limit, and costs nothing."""
        if key.requests_per_minute is None and key.max_concurrent is None:
            yield
            return
        usage = self._start(key)
        try:
            yield
        finally:
            with self._lock:
                usage.num_running -= 1

    def _start(self, key: ApiKey) -> _KeyUsage:
        with self._lock:
            usage = self._usages.setdefault(key.name, _KeyUsage())
            # Both may refuse, so the one that takes something on passing comes last.
            _check_concurrency(usage, key.max_concurrent)
            if key.requests_per_minute is not None:
                _take_token(usage, key.requests_per_minute, self._clock())
            usage.num_running += 1
            return usage


def _check_concurrency(usage: _KeyUsage, limit: int | None) -> None:
    if limit is not None and usage.num_running >= limit:
        raise TooManyRequests(
            f"This key may have {limit} requests running at once",
            code="too_many_concurrent",
            retry_after_s=CONCURRENT_RETRY_S,
        )


def _take_token(usage: _KeyUsage, requests_per_minute: int, now: float) -> None:
    rate = requests_per_minute / 60  # tokens a second
    grown = usage.tokens + (now - usage.counted_at) * rate
    tokens = min(burst(requests_per_minute), grown)
    if tokens < 1 - ROUNDING:
        raise TooManyRequests(
            f"This key may start {requests_per_minute} requests a minute, "
            f"at most {int(burst(requests_per_minute))} in one burst",
            code="rate_limited",
            retry_after_s=(1 - tokens) / rate,
        )
    usage.tokens, usage.counted_at = tokens - 1, now
