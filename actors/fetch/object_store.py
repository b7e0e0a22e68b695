"""S3 and Google Cloud Storage through pyarrow's filesystems, asked again where that can help.

Knows nothing about what objects hold. What is permanent (no such key, access denied) is told at
once; what passes (503, 429, a connection that broke or timed out) is tried again for PATIENCE_S.
"""

import io
import logging
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import pyarrow as pa
from pyarrow import fs
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 15.0
"""A request may go so long without a byte, in either direction."""
SDK_RETRIES = 5
"""How often the SDK itself repeats a request: after 50, 100, ... 800 ms."""
PATIENCE_S = 75.0
"""No new attempt at an operation begins after this. A server that accepts connections and never
answers holds one for (SDK_RETRIES + 1) x REQUEST_TIMEOUT_S = 90 s, so that an operation fails after
165 s at the latest, and after 90 s if nothing else is wrong.
"""

_PASSING = {
    "INTERNAL_FAILURE",
    "NETWORK_CONNECTION",
    "REQUEST_TIMEOUT",
    "SERVICE_UNAVAILABLE",
    "SLOW_DOWN",
    "THROTTLING",
}
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (-?\d+)\))?")
_NO_ANSWER = -1  # pyarrow's status of an answer that is not the XML that it should be
_TOO_SOON = {408, 429}
_ONLY_BY_URI = {"smart_defaults", "tls_ca_dir_path", "tls_verify_certificates"}
"""Options for which pyarrow's constructor has no argument: with these, no SDK_RETRIES."""


class ReadError(OSError):
    """An object that cannot be opened or read: pyarrow has OSErrors for what is in it as well."""


class ShortRead(ReadError):
    """Fewer bytes than the object has, and no error from the server."""


def filesystem(uri: str) -> fs.FileSystem:
    """The filesystem of a bucket's URI, with the query and the credentials that configure it.

    The endpoint and the region of the usual AWS variables hold where the URI has none. Raises
    OSError or ValueError, in words that have none of the URI's credentials.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return _filesystem(_with_defaults(uri, endpoint, region))


def _with_defaults(uri: str, endpoint: str | None, region: str | None) -> str:
    """Without a region pyarrow asks amazonaws.com for the bucket's, whatever the endpoint is."""
    given = _options(uri)
    chosen: dict[str, str] = {}
    if not uri.startswith("s3:"):
        chosen["retry_limit_seconds"] = str(PATIENCE_S)
    elif endpoint and "endpoint_override" not in given:
        parts = urlsplit(endpoint)
        chosen["endpoint_override"], chosen["scheme"] = parts.netloc, parts.scheme
        chosen["region"] = region or "us-east-1"
    missing = urlencode({name: value for name, value in chosen.items() if name not in given})
    if not missing:
        return uri
    return f"{uri}&{missing}" if "?" in uri else f"{uri}?{missing}"


def _options(uri: str) -> set[str]:
    return {name for name, _ in parse_qsl(urlsplit(uri).query, keep_blank_values=True)}


@lru_cache(maxsize=64)
def _filesystem(uri: str) -> fs.FileSystem:
    try:
        opened = retried(lambda: fs.FileSystem.from_uri(uri)[0])
    except (OSError, ValueError) as error:
        secrets = (uri, urlsplit(uri).netloc.rpartition("@")[0])
        message = str(error)
        for secret in filter(None, secrets):
            message = message.replace(secret, "...")
        raise type(error)(message) from None
    if isinstance(opened, fs.S3FileSystem) and not _ONLY_BY_URI & _options(uri):
        return _with_retries(opened)
    return opened


def _with_retries(opened: fs.S3FileSystem) -> fs.S3FileSystem:
    """The same, by the arguments in its pickle: a URI sets neither retries nor timeouts.

    The strategy is not pyarrow's default, AwsStandardS3RetryStrategy: in pyarrow 26 that one stops
    retrying for good after 100 retries of a filesystem, as its quota is never given back.
    """
    _, (arguments,) = opened.__reduce__()
    given = {
        "retry_strategy": fs.AwsDefaultS3RetryStrategy(max_attempts=SDK_RETRIES),
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "allow_delayed_open": True,  # one PUT for a small object, instead of three requests
    }
    return fs.S3FileSystem(**arguments | given)


def retried(operation: Callable[[], T]) -> T:
    """What `operation` returns; it is called again while it raises something that may pass."""
    attempts = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=15),
        stop=stop_before_delay(PATIENCE_S),
        before_sleep=_log_retry,
        reraise=True,
    )
    return attempts(operation)


def may_pass(error: BaseException) -> bool:
    """pyarrow has all of a server's errors as OSError, and says which in its message alone."""
    if isinstance(error, ShortRead):
        return True
    found = _AWS_ERROR.search(str(error)) if isinstance(error, OSError) else None
    if found is None:
        return False
    name, status = found[1], int(found[2] or 0)
    return name in _PASSING or status == _NO_ANSWER or status in _TOO_SOON or status >= 500


def _log_retry(state: Any) -> None:
    if state.attempt_number == 1 or state.attempt_number % 5 == 0:
        logger.warning(f"{state.outcome.exception()}; trying again for up to {PATIENCE_S:.0f} s")


def open_object(filesystem: fs.FileSystem, path: str) -> "ObjectFile":
    """Raises ReadError, of no such object FileNotFoundError."""
    return ObjectFile(_read(lambda: filesystem.open_input_file(path)))


def _read(operation: Callable[[], T]) -> T:
    try:
        return retried(operation)
    except (FileNotFoundError, ReadError):
        raise
    except OSError as error:
        raise ReadError(*error.args) from error


class ObjectFile(io.RawIOBase):
    """An object open for reading, each read of which is retried. One thread at a time."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._size = stream.size()
        self._position = 0

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        content = _read(lambda: self._read_at(wanted)) if wanted else b""
        self._position += len(content)
        return content

    def _read_at(self, wanted: int) -> bytes:
        content = self._stream.read_at(wanted, self._position)
        if len(content) != wanted:
            raise ShortRead(f"{len(content)} bytes came of {wanted} at {self._position}")
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()
