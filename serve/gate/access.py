"""The access log: one line a request, of text or JSON. Never what a request or an answer holds.

Also what tells lines apart: the request's id.
"""

import json
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from starlette.datastructures import Headers

from shardrank.serve.console import log

AccessLog = Literal["lines", "json", "none"]
_MAX_PATH = 1_000
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Usage:
    """What the service did for the request at hand; 0 where it was not asked."""

    num_documents: int = 0
    num_tokens: int = 0
    num_truncated: int = 0


_USAGE: ContextVar[Usage] = ContextVar("usage")


def begin() -> Usage:
    """Of the request that this task is about to serve."""
    usage = Usage()
    _USAGE.set(usage)
    return usage


def usage() -> Usage:
    """Of this task's request; one that nobody reads where there is none."""
    return _USAGE.get(None) or Usage()


def log_access(
    kind: AccessLog,
    method: str,
    path: str,
    status: int,
    seconds: float,
    request_id: str,
    usage: Usage,
) -> None:
    if kind == "none":
        return
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "method": method,
        "path": quote(path, safe="/:@!$&'()*+,;=~", errors="replace")[:_MAX_PATH],
        "status": status,
        "ms": round(seconds * 1_000),
        "request_id": request_id,
        "documents": usage.num_documents,
        "tokens": usage.num_tokens,
    }
    if kind == "json":
        log(json.dumps(entry))
        return
    log(
        "{time} {method} {path} {status} {ms} ms request_id={request_id} documents={documents} "
        "tokens={tokens}".format(**entry)
    )


def request_id_of(headers: Headers) -> str:
    """The caller's own, where it is fit for a header, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
