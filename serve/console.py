"""What the server says where it was started, from whichever of its processes: how it starts, and
the access log, a line a request, of text or JSON. Never what a request or an answer holds.

`shardrank serve` makes a named pipe and shows the lines that come (serve/cli.py); the replicas and
proxies of its Ray write to it. Where another command started the Ray, lines go to each process's
own output, which Ray keeps among its logs.
"""

import json
import os
import re
import sys
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Literal
from urllib.parse import quote

from starlette.datastructures import Headers

AccessLog = Literal["lines", "json", "none"]
PIPE_VARIABLE = "SHARDRANK_CONSOLE"
OUT, ERR, END = b"1", b"2", b"0"
"""What a line in the pipe begins with: where the command shows it, or that it is the last one."""
_MAX_BYTES = 4_096
"""So many bytes at once come out of a pipe as they went in, whoever else writes (PIPE_BUF)."""
_MAX_PATH = 1_000
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def log(line: str) -> None:
    """On stdout: a line of the access log."""
    _write(OUT, line)


def say(line: str) -> None:
    """On stderr: how starting goes."""
    _write(ERR, line)


def _write(stream: bytes, line: str) -> None:
    path = os.environ.get(PIPE_VARIABLE)
    try:
        if path is None:
            print(line, file=sys.stdout if stream == OUT else sys.stderr, flush=True)
        else:
            os.write(_opened(path), stream + line.encode()[: _MAX_BYTES - 2] + b"\n")
    except OSError:
        pass  # nobody listens any more, or not fast enough


@cache
def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


@dataclass(slots=True)
class Usage:
    """What the service did for the request at hand; 0 where it was not asked."""

    num_documents: int = 0
    num_tokens: int = 0
    num_truncated: int = 0


_USAGE: ContextVar[Usage] = ContextVar("usage")
caller: ContextVar[str] = ContextVar("caller", default="")
"""Whose request it is, for what is shared fairly: the key's name, without keys the address."""


def begin() -> Usage:
    """A new Usage, of the request that this task is about to serve."""
    usage = Usage()
    _USAGE.set(usage)
    return usage


def usage() -> Usage:
    """The usage of this task's request; one that nobody reads where there is none."""
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
    text = (
        "{time} {method} {path} {status} {ms} ms request_id={request_id} documents={documents} "
        "tokens={tokens}".format(**entry)
    )
    log(json.dumps(entry) if kind == "json" else text)


def request_id_of(headers: Headers) -> str:
    """The caller's own, where it is fit for a header, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
