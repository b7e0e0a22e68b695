"""What an error says in its dialect's words: TEI's and DashScope's have a form of their own.

Which one it is is chosen by the path and, for TEI, by the fields of the request.
"""

import logging
import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from shardrank.serve.dialects.answers import Json
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


def body_of(error: ApiError, path: str, request_id: str, fields: Any = None) -> dict[str, Any]:
    """fields: the request's body, where it is an object. TEI shares its paths; it has `texts`."""
    if path in SHAPED_PATHS and isinstance(fields, dict) and "texts" in fields:
        is_empty = error.status != 400 or error.code == "empty"
        kind = _TEI_TYPES.get(error.status, "Backend") if is_empty else "Validation"
        return {"error": str(error), "error_type": kind}
    if path == DASHSCOPE_PATH:
        return {"code": error.code, "message": str(error), "request_id": request_id}
    return error.body(request_id)


def outline(body: bytes) -> dict[str, None]:
    """Names of fields at its beginning and end, nested ones too: enough to tell the dialect of a
    body that was refused, which is not worth parsing.
    """
    shown = body[:_LOOKED_AT_BYTES] + body[_LOOKED_AT_BYTES:][-_LOOKED_AT_BYTES:]
    return dict.fromkeys(name.decode() for name in _NAME.findall(shown))


def add_errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError, fields: Any = None) -> Response:
        request_id = getattr(request.state, "request_id", "")
        content = body_of(error, request.url.path, request_id, fields)
        return Json(content, status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error, outline(await request.body()))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, _invalid(error), error.body)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.__cause__:  # FastAPI could not read the body
            return answer(request, _unreadable(error.__cause__))
        told = answer(request, ApiError.of_http(error.status_code, str(error.detail)))
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
