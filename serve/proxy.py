"""What Serve's HTTP proxy does where Serve has no good answer.

A request whose replica died has an error in the endpoint's words, where Serve answers in bare text.
While the application is not there yet or no more, the answer is 503, where Serve's is 404.
Installed through RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which the Ray that hosts the proxy must
have from its start.
"""

import json
import logging
import os
import time
from collections.abc import Iterable
from itertools import count

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shardrank.serve.console import Usage, log_access, request_id_of
from shardrank.serve.errors import ApiError, DeadlineExceeded, NotReady, TooManyRequests

logger = logging.getLogger(__name__)

CALLBACK = "shardrank.serve.proxy.middlewares"
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
ACCESS_LOG_VARIABLE = "SHARDRANK_ACCESS_LOG"
"""lines, json or none: for what the proxy answers itself."""
_MAX_ATTEMPTS = 4
_WITHOUT_BODY = ("GET", "HEAD")
_RETRY_AFTER_S = 2
_REQUEST_ID = b"x-request-id"


def middlewares() -> list[Middleware]:
    return [Middleware(AskAnotherReplica)]


class AskAnotherReplica:
    """What ends without an answer is asked again, where it has no body; at last it is an error.

    A request with a body may have been what its replica died of, and would be what the next one
    dies of.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        caller, answer = _Caller(receive), _Answer(scope, receive, send)
        await self._ask(scope, caller, answer)
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

    async def _ask(self, scope: Scope, caller: "_Caller", answer: "_Answer") -> None:
        if scope["path"].rstrip("/") == "/-/routes":  # Serve's, which asks for no key
            await answer.fail(ApiError.of_http(404, "Not Found"))
            return
        is_again_safe = scope["method"] in _WITHOUT_BODY
        for attempt in range(1, 1 + (_MAX_ATTEMPTS if is_again_safe else 1)):
            try:
                await self._app(dict(scope), caller.request(attempt), answer)
            except Exception:  # Serve's own failure: the caller gets an answer all the same
                logger.exception("a request failed in the proxy")
            if answer.has_started or caller.is_gone:
                return
            logger.warning("a replica was lost, attempt %d", attempt)
        if is_again_safe:
            await answer.fail(_LOST)
        else:
            sentence = "the replica was lost that worked on this, perhaps of this"
            await answer.fail(ApiError(sentence, code="replica_lost"))


class _Caller:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_gone = False

    def request(self, attempt: int) -> Receive:
        """What the caller sends; from the second time on it is known to be nothing."""
        is_again = attempt > 1

        async def receive() -> Message:
            nonlocal is_again
            if is_again:
                is_again = False
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._receive()
            self.is_gone = message["type"] == "http.disconnect"
            return message

        return receive


class _Answer:
    """Passes an answer on; Serve's own refusals, which are bare text, in the endpoint's words."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.request_id = request_id_of(Headers(scope=scope))
        self.own_status: int | None = None
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            status = message["status"]
            if status in _OF_SERVE and not _is_json(message):
                await self._write(_OF_SERVE[status])
                return
            message = dict(message, headers=_without_repeats(message.get("headers", ())))
        if self.own_status is None:
            await self._send(message)

    async def fail(self, error: ApiError) -> None:
        if not self.has_started:
            self.has_started = True
            await self._write(error)

    async def _write(self, error: ApiError) -> None:
        self.own_status = error.status
        content = json.dumps(error.body(self.request_id))
        headers = error.headers | {"x-request-id": self.request_id}
        answer = Response(content, error.status, headers, "application/json")
        await answer(self._scope, self._receive, self._send)


_OF_SERVE = {
    404: NotReady.of_server(_RETRY_AFTER_S),
    408: DeadlineExceeded("the request was not finished in time", retry_after_s=_RETRY_AFTER_S),
    429: TooManyRequests(
        "no capacity is left, try again", code="overloaded", retry_after_s=_RETRY_AFTER_S
    ),
    503: NotReady("no replica is ready, try again", retry_after_s=_RETRY_AFTER_S),
}
_LOST = NotReady(
    "a replica was lost while it worked on this, try again", retry_after_s=_RETRY_AFTER_S
)


def _without_repeats(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Serve adds the request's id, which the endpoint has said already."""
    ids = count()
    return [pair for pair in headers if pair[0].lower() != _REQUEST_ID or next(ids) == 0]


def _is_json(message: Message) -> bool:
    headers = dict(message.get("headers", ()))
    return headers.get(b"content-type", b"").startswith(b"application/json")
