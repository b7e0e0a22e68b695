"""API keys as they are written: in a file, or as the environment's text; kept as hashes.

    [keys.search-team]
    sha256 = "<64 hexadecimal digits: hash_key(KEY)>"
    requests_per_minute = 600   # optional, as is the next
    max_concurrent = 8

Knows nothing of requests. What a limit does is serve/gate/keys.py's.
"""

import hashlib
import re
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEYS_VARIABLE = "SHARDRANK_API_KEYS"
KEY_PREFIX = "sr-"  # so that people and secret scanners recognise one
MIN_KEY_CHARACTERS = 16
MAX_KEY_CHARACTERS = 1024
FIELDS = ("sha256", "requests_per_minute", "max_concurrent")


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
    refuse_duplicates(keys, f"{path}: ")
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


def environment_keys(text: str | None) -> tuple[ApiKey, ...]:
    """Plain keys, separated by commas or newlines, as env-1, env-2, ... without limits; none where
    the variable is not set.

    A text without a key is a ValueError: set but empty is more often a slip than a wish for an
    endpoint that is open to all. No message holds a key.
    """
    if text is None:
        return ()
    plain = [piece.strip() for piece in re.split(r"[,\n]", text) if piece.strip()]
    if not plain:
        raise ValueError("the environment's API keys are set but empty: unset them, or give a key")
    keys = tuple(_key_of_text(f"env-{n}", key) for n, key in enumerate(plain, start=1))
    refuse_duplicates(keys, "the environment's API keys: ")
    return keys


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


def refuse_duplicates(keys: Sequence[ApiKey], where: str) -> None:
    """Raises ValueError, which begins with `where`, on two that have a name or a hash together."""
    names: set[str] = set()
    name_of_hash: dict[str, str] = {}
    for key in keys:
        if key.name in names:
            raise ValueError(f"{where}two keys have the name {key.name!r}")
        if (other := name_of_hash.get(key.sha256)) is not None:
            raise ValueError(f"{where}keys {other!r} and {key.name!r} have the same sha256")
        names.add(key.name)
        name_of_hash[key.sha256] = key.name
