"""What Serve's HTTP proxy does where Serve has no good answer.

A request whose replica died is asked of another one, where Serve answers 500: reranking changes
nothing, so asking again is safe. While the application is not there yet or no more, the answer is
503, where Serve's is 404. Installed through RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which the
Ray that hosts the proxy must have from its start.
"""

import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware

from shardrank.serve.gate.access import Usage, log_access, request_id_of

logger = logging.getLogger(__name__)

CALLBACK = "shardrank.serve.proxy.middlewares"
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
ACCESS_LOG_VARIABLE = "SHARDRANK_ACCESS_LOG"
"""lines, json or none: for what the proxy answers itself."""
_MAX_ATTEMPTS = 4
_MAX_KEPT_BYTES = 256 << 20
_RETRY_AFTER_S = 2
_REQUEST_ID = b"x-request-id"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def middlewares() -> list[Middleware]:
    return [Middleware(AskAnotherReplica)]


class AskAnotherReplica:
    """A request that ends without an answer is sent again, its body kept; at last it is 503."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request, answer = _KeptRequest(receive), _Answer(send, request_id_of(Headers(scope=scope)))
        await self._ask(scope, request, answer)
        if answer.own_status is not None:  # the endpoint has logged the others
            log_access(
                os.environ.get(ACCESS_LOG_VARIABLE, "lines"),  # type: ignore[arg-type]
                scope["method"],
                scope["path"],
                answer.own_status,
                time.monotonic() - started,
                answer.request_id,
                Usage(),
            )

    async def _ask(
        self, scope: MutableMapping[str, Any], request: "_KeptRequest", answer: "_Answer"
    ) -> None:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                await self._app(dict(scope), request.replay(), answer)
            except Exception:  # Serve's own failure: the caller gets an answer all the same
                logger.exception("a request failed in the proxy")
            if answer.has_started or request.is_gone:
                return
            if not request.is_whole:
                break
            logger.warning("a replica was lost, attempt %d of %d", attempt, _MAX_ATTEMPTS)
        await answer.fail(503, "a replica was lost while it worked on this, try again")


class _KeptRequest:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._kept_bytes = 0
        self.is_whole = True  # nothing that came was too much to keep
        self.is_gone = False  # the client is

    def replay(self) -> Receive:
        """What came already, then what is still to come."""
        kept = iter(list(self._kept))

        async def receive() -> Message:
            for message in kept:
                return message
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_gone = True
            else:
                self._keep(message)
            return message

        return receive

    def _keep(self, message: Message) -> None:
        self._kept_bytes += len(message.get("body", b""))
        if self._kept_bytes > _MAX_KEPT_BYTES:
            self.is_whole = False
            self._kept.clear()
        if self.is_whole:
            self._kept.append(dict(message))


class _Answer:
    """Passes an answer on; Serve's own refusals, which are bare text, in the endpoint's words."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.own_status: int | None = None
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            status = message["status"]
            if status in _OF_SERVE and not _is_json(message):
                await self._write(*_OF_SERVE[status])
                return
            message = dict(message, headers=_without_repeats(message.get("headers", ())))
        if self.own_status is None:
            await self._send(message)

    async def fail(self, status: int, sentence: str) -> None:
        if not self.has_started:
            self.has_started = True
            await self._write(status, sentence)

    async def _write(self, status: int, sentence: str) -> None:
        self.own_status = status
        kind = {429: "rate_limit_error", 504: "timeout_error"}.get(status, "unavailable_error")
        code = {429: "overloaded", 504: "deadline_exceeded"}.get(status, "not_ready")
        error = {"message": sentence, "type": kind, "param": None, "code": code}
        content = {"error": error, "message": sentence, "detail": sentence}
        body = json.dumps(content | {"request_id": self.request_id}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(_RETRY_AFTER_S).encode()),
            (_REQUEST_ID, self.request_id.encode()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


_OF_SERVE = {
    404: (503, "the server is starting or stopping, try again"),
    408: (504, "the request was not finished in time"),
    429: (429, "no capacity is left, try again"),
    503: (503, "no replica is ready, try again"),
}


def _without_repeats(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Serve adds the request's id, which the endpoint has said already."""
    seen = set()
    kept = []
    for name, value in headers:
        if name.lower() != _REQUEST_ID or name.lower() not in seen:
            kept.append((name, value))
        seen.add(name.lower())
    return kept


def _is_json(message: Message) -> bool:
    headers = dict(message.get("headers", ()))
    return headers.get(b"content-type", b"").startswith(b"application/json")
