"""What went wrong with a request, as an answer in its dialect's words."""

import asyncio
import json
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from shardrank.serve.dialects.answers import SHAPED_PATHS, body_of, is_tei
from shardrank.serve.dialects.bodies import outline
from shardrank.serve.dialects.contents import whole
from shardrank.serve.errors import ApiError, BadRequest, InvalidRequest

logger = logging.getLogger(__name__)


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


def add_errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError, body: Any = None) -> Response:
        path = request.url.path
        request_id = getattr(request.state, "request_id", "")
        content = body_of(error, path, request_id, is_tei(path, body))
        return Json(content, status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error, await _body_again(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, _invalid(error), error.body)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.__cause__:  # FastAPI could not read the body
            return answer(request, _unreadable(error.__cause__))
        found = ApiError(str(error.detail), code="http_error")
        found.type = InvalidRequest.type
        content = body_of(found, request.url.path, getattr(request.state, "request_id", ""))
        return Json(content, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)  # the outermost border: a bug of ours, never bad input
    async def bug(request: Request, error: Exception) -> Response:
        logger.exception("a request failed")
        found = ApiError("the server failed on this request; its log says why")
        return answer(request, found)


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


async def _body_again(request: Request) -> Any:
    """What the body looked like, for the dialect of an error."""
    if request.url.path not in SHAPED_PATHS:
        return None
    return outline(await request.body())
