"""What is left out of whatever is printed or kept: credentials that a URI carries, and, on its way
to a terminal, what would command it.
"""

import re
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from shardrank.actors.fetch.reader import SECRET_WORDS

HIDDEN = "***"
_SECRET = re.compile(SECRET_WORDS, re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_URI = re.compile(r"[a-z][a-z0-9+.-]{0,30}://\S+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with the credentials of every URI in it replaced by `***`."""
    return _URI.sub(lambda match: _redacted_uri(match[0]), text)


def printable(text: str) -> str:
    """The text for a terminal, which names and ids of strangers shall not command."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def redacted_argument(text: str) -> str:
    """The same of a command's argument: what begins as a URI is one to its end, spaces and all."""
    start = _URI.search(text)
    if start is None:
        return text
    return redacted(text[: start.start()] + _redacted_uri(text[start.start() :]))


def _redacted_uri(uri: str) -> str:
    try:
        parts = urlsplit(uri, allow_fragments=False)  # as Location.parse has it
    except ValueError:  # no URI after all; what it may hold, nobody can say
        return f"{uri.partition('://')[0]}://{HIDDEN}"
    userinfo, at, host = parts.netloc.rpartition("@")
    has_secrets = _SECRET.search(parts.query)
    if not userinfo and not has_secrets:
        return uri
    given = parse_qsl(parts.query, keep_blank_values=True)
    shown = (
        f"{name}={HIDDEN if _SECRET.search(name) else quote(value, safe=':/')}"
        for name, value in given
    )
    netloc = f"{HIDDEN}{at}{host}" if userinfo else parts.netloc
    query = "&".join(shown) if has_secrets else parts.query
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))
