"""What Serve's HTTP proxy does for a request whose replica died: it asks another one.

Serve itself answers 500. Reranking changes nothing, so asking again is safe. Installed through
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which the Ray that hosts the proxy must have from its
start.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

logger = logging.getLogger(__name__)

CALLBACK = "shardrank.serve.proxy.middlewares"
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
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
        request, answer = _KeptRequest(receive), _Answer(send)
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

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_replaced = False
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            status = message["status"]
            if status in _OF_SERVE and not _is_json(message):
                self._is_replaced = True
                await self._write(*_OF_SERVE[status])
                return
            message = dict(message, headers=_without_repeats(message.get("headers", ())))
        if not self._is_replaced:
            await self._send(message)

    async def fail(self, status: int, sentence: str) -> None:
        if not self.has_started:
            self.has_started = True
            await self._write(status, sentence)

    async def _write(self, status: int, sentence: str) -> None:
        kind = {429: "rate_limit_error", 504: "timeout_error"}.get(status, "unavailable_error")
        code = {429: "overloaded", 504: "deadline_exceeded"}.get(status, "not_ready")
        error = {"message": sentence, "type": kind, "param": None, "code": code}
        body = json.dumps({"error": error, "message": sentence, "detail": sentence}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(_RETRY_AFTER_S).encode()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


_OF_SERVE = {
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
