"""What every request passes before the application sees it, as ASGI middleware.

Its id, its key and the key's limits, its body read within bounds of size and time. A client that
goes away cancels its request.
"""

import asyncio
import json
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardrank.serve.console import Usage, begin, caller, log_access, request_id_of
from shardrank.serve.dialects.failures import body_of, outline
from shardrank.serve.errors import (
    ApiError,
    BodyTooLarge,
    DeadlineExceeded,
    Misdirected,
    Unauthorized,
    UnreadableEncoding,
)
from shardrank.serve.gate.keys import ApiKeys, RateLimiter, is_local_name
from shardrank.serve.metrics import Metrics
from shardrank.serve.settings import ServeSettings

OPEN_PATHS = ("/health", "/ready", "/.well-known/ready", "/v1/cluster/auth")
"""The last one tells Xinference's client whether it is to send its key."""
_BODY_TIMEOUT_S = 60.0
_CLIENT_GONE = 499
"""nginx counts such requests so; nobody reads it."""


class _ClientGone(Exception):
    pass


class Gate:
    """check_room raises where no more work is taken, which is told before a body is parsed."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        keys: ApiKeys,
        metrics: Metrics,
        check_room: Callable[[str], None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._metrics = metrics
        self._check_room = check_room
        self._limiter = RateLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = dict(scope, path=_plain(scope["path"]))
        method = scope["method"]
        is_head = method == "HEAD"
        if is_head:
            scope["method"] = "GET"
        headers = Headers(scope=scope)
        request_id = request_id_of(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        usage = begin()
        answer = _Answer(send, request_id, usage, is_head)
        started = time.monotonic()
        try:
            await self._admitted(scope, headers, receive, answer)
        except ApiError as error:
            await answer.fail(error, scope, receive)
        except _ClientGone:
            answer.status = _CLIENT_GONE
        finally:
            seconds = time.monotonic() - started
            self._metrics.request(scope, answer.status, seconds)
            path, status = scope["path"], answer.status
            log_access(self._settings.access_log, method, path, status, seconds, request_id, usage)

    async def _admitted(
        self,
        scope: Scope,
        headers: Headers,
        receive: Receive,
        answer: "_Answer",
    ) -> None:
        if self._settings.is_local and not is_local_name(headers.get("host", "")):
            raise Misdirected("without keys this server answers to localhost and 127.0.0.1 alone")
        if scope["path"] in OPEN_PATHS:
            await _run(self._app, scope, receive, answer, b"")
            return
        try:
            key = self._keys.check(headers)
        except Unauthorized as error:
            error.is_for_browser = "text/html" in headers.get("accept", "")
            raise
        client = scope.get("client") or ("", 0)
        caller.set(str(client[0]) if self._keys.is_open else key.name)
        encoding = headers.get("content-encoding", "").strip().lower()
        if scope["method"] == "POST" and encoding not in ("", "identity"):
            raise UnreadableEncoding(
                f"bodies are read as they are: send it without Content-Encoding: {encoding[:40]}"
            )
        with self._limiter.admit(key):
            body = await self._body(headers, receive)
            answer.body_of_request = body
            if scope["method"] == "POST":
                self._check_room(scope["path"])
            await _run(self._app, scope, receive, answer, body)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """All of it. Raises BodyTooLarge as soon as that is known, DeadlineExceeded when slow."""
        limit = self._settings.limits.max_body_bytes
        too_large = f"the request's body is over the limit of {limit:,} bytes"
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise BodyTooLarge(too_large)
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise BodyTooLarge(too_large)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request's body did not come within {_BODY_TIMEOUT_S:.0f} s"
            ) from None


def _plain(path: str) -> str:
    """//rerank and /rerank/ are /rerank: a redirect would be followed by few, and lose the key."""
    return "/" + "/".join(filter(None, path.split("/")))


async def _run(app: ASGIApp, scope: Scope, receive: Receive, send: "_Answer", body: bytes) -> None:
    """The application with the body at hand; cancelled when the client goes away."""
    gone = asyncio.create_task(_disconnected(receive))
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if not is_read:
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.wait({gone})
        return {"type": "http.disconnect"}

    async def run() -> None:
        await app(scope, replay, send)

    running = asyncio.create_task(run())
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        else:
            send.status = _CLIENT_GONE
    finally:
        for task in (running, gone):
            task.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Answer:
    """Sends, with the request's id in the headers, and remembers the status.

    That documents were truncated is a header on every dialect: some have no other place for it.
    """

    def __init__(self, send: Send, request_id: str, usage: Usage, is_head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._usage = usage
        self._is_head = is_head
        self.status = 500
        self.body_of_request = b""
        self._has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            if self._usage.num_truncated:
                headers["x-truncated-documents"] = str(self._usage.num_truncated)
        elif self._is_head:
            message = dict(message, body=b"")
        await self._send(message)

    async def fail(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        if self._has_started:
            return
        fields = outline(self.body_of_request)
        content = body_of(error, scope["path"], self._request_id, fields)
        answer = Response(json.dumps(content), error.status, error.headers, "application/json")
        await answer(scope, receive, self)
