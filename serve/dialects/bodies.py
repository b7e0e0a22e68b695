"""Bodies: requests' read and answers' rendered in a thread, for large ones take seconds, which the
event loop of all callers has not; and what an error's says in its dialect's words.

How an error looks is chosen by the path and, for TEI, by the fields of the request.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from shardrank.serve.dialects.contents import whole
from shardrank.serve.errors import ApiError, BadRequest, InvalidRequest

logger = logging.getLogger(__name__)

DASHSCOPE_PATH = "/api/v1/services/rerank/text-rerank/text-rerank"
SHAPED_PATHS = (
    "/rerank",
    "/v1/rerank",
    "/reranking",
    "/v1/reranking",
    "/ranking",
    "/v1/ranking",
)
"""Where several dialects meet, and a request's body says which one it speaks."""

_TEI_TYPES = {
    400: "Empty",
    401: "Validation",
    413: "Validation",
    415: "Validation",
    422: "Validation",
    429: "Overloaded",
    503: "Unhealthy",
}
_LOOKED_AT_BYTES = 1 << 16
_NAME = re.compile(rb'"(\w+)"\s*:')


class BodyRoute(APIRoute):
    """Hands FastAPI what it would make of the body itself: a checked value passes as it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(_ReadRequest(request, self.body_field))
            except HTTPException as error:  # what FastAPI makes of whatever `json` raises
                if isinstance(error.__cause__, RequestValidationError):
                    raise error.__cause__ from None
                raise

        return handler


class _ReadRequest(Request):
    def __init__(self, request: Request, field: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._request = request
        self._field = field

    async def body(self) -> bytes:
        """Kept by the request as it came, which is what handlers of errors are given."""
        return await self._request.body()

    async def json(self) -> Any:
        """Raises ValueError, RecursionError or RequestValidationError."""
        return await asyncio.to_thread(self._checked, await self.body())

    def _checked(self, body: bytes) -> Any:
        content = json.loads(body)
        value, errors = self._field.validate(content, loc=("body",))
        if errors:
            raise RequestValidationError(errors, body=content)
        return value


class Json(JSONResponse):
    """Half a surrogate pair, which many readers refuse even as its escape, is U+FFFD.

    Rendered when it is sent, and in a thread: it may echo all of a large body.
    """

    def __init__(self, content: Any = None, status_code: int = 200, **more: Any) -> None:
        super().__init__(None, status_code, **more)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = await asyncio.to_thread(self.render, self._content)
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return whole(text).encode()


def body_of(error: ApiError, path: str, request_id: str, is_tei: bool = False) -> dict[str, Any]:
    """One body serves the readers of `error`, `message` and `detail`."""
    message = str(error)
    if is_tei:
        is_empty = error.status != 400 or error.code == "empty"
        kind = _TEI_TYPES.get(error.status, "Backend") if is_empty else "Validation"
        return {"error": message, "error_type": kind}
    if path == DASHSCOPE_PATH:
        return {"code": error.code, "message": message, "request_id": request_id}
    told = {"message": message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": told, "message": message, "detail": message, "request_id": request_id}


def outline(body: bytes) -> dict[str, None]:
    """Names of fields at its beginning and end, nested ones too: enough to tell the dialect of a
    body that was refused, which is not worth parsing.
    """
    shown = body[:_LOOKED_AT_BYTES] + body[_LOOKED_AT_BYTES:][-_LOOKED_AT_BYTES:]
    return dict.fromkeys(name.decode() for name in _NAME.findall(shown))


def is_tei(path: str, fields: Any) -> bool:
    """TEI shares its paths with others; its requests have `texts`."""
    return path in SHAPED_PATHS and isinstance(fields, dict) and "texts" in fields


def add_errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError, fields: Any = None) -> Response:
        path = request.url.path
        request_id = getattr(request.state, "request_id", "")
        content = body_of(error, path, request_id, is_tei(path, fields))
        return Json(content, status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        is_shaped = request.url.path in SHAPED_PATHS
        return answer(request, error, outline(await request.body()) if is_shaped else None)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, _invalid(error), error.body)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.__cause__:  # FastAPI could not read the body
            return answer(request, _unreadable(error.__cause__))
        found = ApiError(str(error.detail), code="http_error")
        found.status, found.type = error.status_code, InvalidRequest.type
        told = answer(request, found)
        told.headers.update(error.headers or {})
        return told

    @app.exception_handler(Exception)  # the outermost border: a bug of ours, never bad input
    async def bug(request: Request, error: Exception) -> Response:
        logger.exception("a request failed")
        return answer(request, ApiError("the server failed on this request; its log says why"))


def _invalid(error: RequestValidationError) -> InvalidRequest:
    """What is wrong first, in a sentence."""
    first = error.errors()[0]
    kind, place = first["type"], [str(part) for part in first["loc"] if part != "body"]
    if kind == "json_invalid":
        return InvalidRequest(
            f"not JSON at character {place[0]} of the body: {first['ctx']['error']}"
        )
    if not place and kind in ("missing", "model_attributes_type"):
        return InvalidRequest(
            "the body must be a JSON object, with the header Content-Type: application/json"
        )
    name = ".".join(place)
    sentence = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(
        (f"{name}: {sentence}" if name else sentence)[:1_000], param=name[:200] or None
    )


def _unreadable(cause: BaseException) -> BadRequest:
    """Why a body is no JSON value, where JSON's own reader does not say it."""
    if isinstance(cause, RecursionError):
        return BadRequest("the body is nested too deeply to be read")
    if isinstance(cause, UnicodeDecodeError):
        byte = cause.object[cause.start]
        return BadRequest(
            f"the body is not {cause.encoding.upper()}: byte 0x{byte:02x} at {cause.start}"
        )
    return BadRequest(f"the body cannot be read: {cause}"[:300])  # a number of too many digits
