"""API keys: from a file and from the environment's text, kept as hashes.

    [keys.search-team]
    sha256 = "<64 hexadecimal digits: hash_key(KEY)>"
    requests_per_minute = 600   # optional, as is the next
    max_concurrent = 8

Knows nothing about HTTP frameworks: headers are a mapping. What a limit does is
serve/gate/gate.py's.
"""

import base64
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardrank.serve.errors import Unauthorized

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
KEYS_VARIABLE = "SHARDRANK_API_KEYS"
KEY_PREFIX = "sr-"  # so that people and secret scanners recognise one
MIN_KEY_CHARACTERS = 16
MAX_KEY_CHARACTERS = 1024
MAX_HEADER_CHARACTERS = 4096  # such a key in base64, with its user name
FIELDS = ("sha256", "requests_per_minute", "max_concurrent")

NO_KEY = "This server needs an API key: send the header 'Authorization: Bearer KEY'"
WRONG_KEY = "The API key is not one that this server knows"
BAD_BASIC = "The Authorization header's Basic credentials are not base64 of 'user:password'"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's name, its hash and its limits; None: no limit. ValueError names the field."""

    name: str
    sha256: str = field(repr=False)
    requests_per_minute: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        if not (self.name and self.name.isprintable()):  # it is written to logs
            raise ValueError(f"name must be printable characters, got {self.name!r}")
        if not isinstance(self.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            # The value stays out of the message: it may be a key in the place of its hash.
            raise ValueError("sha256 must be a string of 64 hexadecimal digits, a key's hash")
        for limit in ("requests_per_minute", "max_concurrent"):
            value = getattr(self, limit)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{limit} must be a whole number above 0, got {value!r}")


ANONYMOUS = ApiKey("anonymous", "0" * 64)


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    # A slow, salted hash protects what people make up. A key is 256 random bits: nobody finds it by
    # guessing, however fast the hash is, and a fast one keeps requests cheap.
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | Path) -> list[ApiKey]:
    """The keys of a TOML file. ValueError names the file, the key and the field."""
    try:
        tables = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    entries = tables.pop("keys", None)
    if tables:
        raise ValueError(f"{path}: unknown field {min(tables)!r}: only [keys.NAME] is known")
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path}: there are no keys: each is a table [keys.NAME]")
    keys = []
    for name, fields in entries.items():
        try:
            keys.append(_key_of_table(name, fields))
        except ValueError as error:
            raise ValueError(f"{path}: key {name!r}: {error}") from error
    _refuse_duplicates(keys, f"{path}: ")
    return keys


def _key_of_table(name: str, fields: Any) -> ApiKey:
    if not isinstance(fields, dict):
        raise ValueError(f"must be a table [keys.{name}]")
    if unknown := sorted(fields.keys() - set(FIELDS)):
        raise ValueError(f"unknown field {unknown[0]!r}, the fields are {', '.join(FIELDS)}")
    if "sha256" not in fields:
        raise ValueError("sha256 is missing")
    if isinstance(fields["sha256"], str):
        fields = fields | {"sha256": fields["sha256"].lower()}
    return ApiKey(name, **fields)


def parse_environment(text: str) -> list[ApiKey]:
    """Plain keys, separated by commas or newlines, as env-1, env-2, ... without limits.

    A text without a key is a ValueError: set but empty is more often a slip than a wish for an
    endpoint that is open to all. No message holds a key.
    """
    plain = [piece.strip() for piece in re.split(r"[,\n]", text) if piece.strip()]
    if not plain:
        raise ValueError("the environment's API keys are set but empty: unset them, or give a key")
    keys = [_key_of_text(f"env-{n}", key) for n, key in enumerate(plain, start=1)]
    _refuse_duplicates(keys, "the environment's API keys: ")
    return keys


def environment_keys(text: str | None) -> tuple[ApiKey, ...]:
    """What parse_environment gives; none where the variable is not set."""
    return () if text is None else tuple(parse_environment(text))


def _key_of_text(name: str, key: str) -> ApiKey:
    if not MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_CHARACTERS:
        raise ValueError(
            f"the environment's API key {name} has {len(key)} characters: at least "
            f"{MIN_KEY_CHARACTERS} make it hard to guess, and at most {MAX_KEY_CHARACTERS} are read"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            f"the environment's API key {name} has a space or a character outside ASCII, "
            "which no header carries reliably"
        )
    return ApiKey(name, hash_key(key))


def _refuse_duplicates(keys: Sequence[ApiKey], where: str) -> None:
    names: set[str] = set()
    name_of_hash: dict[str, str] = {}
    for key in keys:
        if key.name in names:
            raise ValueError(f"{where}two keys have the name {key.name!r}")
        if (other := name_of_hash.get(key.sha256)) is not None:
            raise ValueError(f"{where}keys {other!r} and {key.name!r} have the same sha256")
        names.add(key.name)
        name_of_hash[key.sha256] = key.name


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys of one endpoint. No keys and not open is a ValueError, so that none is by accident.

    is_open: anybody may call, and check never refuses.
    """

    keys: tuple[ApiKey, ...]
    is_open: bool = False

    def __post_init__(self) -> None:
        if self.is_open == bool(self.keys):
            raise ValueError(f"is_open must be {not self.keys} with {len(self.keys)} keys")
        _refuse_duplicates(self.keys, "")

    @classmethod
    def open(cls) -> "ApiKeys":
        return cls((), is_open=True)

    @classmethod
    def load(cls, path: str | Path | None, environment: str | None) -> "ApiKeys":
        """The keys of a file and of the environment's text; open where both are None."""
        return cls.of(path, environment_keys(environment))

    @classmethod
    def of(cls, path: str | Path | None, others: tuple[ApiKey, ...]) -> "ApiKeys":
        """Those of a file and others; open without either."""
        if path is None and not others:
            return cls.open()
        return cls((*([] if path is None else read_keys(path)), *others))

    def check(self, headers: Mapping[str, str]) -> ApiKey:
        """The caller's key. Unauthorized without one, or with a wrong one.

        headers: names in any case where the mapping ignores it (starlette's does), else lower.
        """
        if self.is_open:
            return ANONYMOUS
        given = _given_key(headers)
        if not given:
            raise Unauthorized(NO_KEY)
        key = _find(hash_key(given), self.keys)
        if key is None:
            raise Unauthorized(WRONG_KEY)
        return key


class WatchedKeys:
    """What ApiKeys.of gives for the file as it is now: who is taken out is out within a second."""

    def __init__(self, path: str | Path | None, others: tuple[ApiKey, ...]) -> None:
        self._path = path
        self._others = others
        self._version = self._looked()
        self._looked_at = time.monotonic()
        self._keys = ApiKeys.of(path, others)

    @property
    def is_open(self) -> bool:
        return self._keys.is_open

    def check(self, headers: Mapping[str, str]) -> ApiKey:
        """The caller's key, see ApiKeys.check."""
        if self._path is not None and time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._look()
        return self._keys.check(headers)

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        version = self._looked()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = ApiKeys.of(self._path, self._others)
        except ValueError as error:  # of a file that is being written, say
            logger.error("%s; the keys of before hold", error)

    def _looked(self) -> tuple[int, ...] | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


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
