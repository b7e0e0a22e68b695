"""Errors in each dialect's own words, chosen by the path and, for TEI, by the body's shape."""

from typing import Any

from shardrank.serve.errors import ApiError

_TEI_TYPES = {
    400: "Empty",
    401: "Validation",
    413: "Validation",
    422: "Validation",
    429: "Overloaded",
    503: "Unhealthy",
}
DASHSCOPE_PATH = "/api/v1/services/rerank/text-rerank/text-rerank"


def body_of(error: ApiError, path: str, request_id: str, is_tei: bool = False) -> dict[str, Any]:
    """One body serves the readers of `error`, `message` and `detail`."""
    message = str(error)
    if is_tei:
        return {"error": message, "error_type": _tei_type(error)}
    if path == DASHSCOPE_PATH:
        return {"code": error.code, "message": message, "request_id": request_id}
    return {
        "error": {
            "message": message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        },
        "message": message,
        "detail": message,
        "request_id": request_id,
    }


def _tei_type(error: ApiError) -> str:
    if error.status == 400 and error.code != "empty":
        return "Validation"
    return _TEI_TYPES.get(error.status, "Backend")


def is_tei(path: str, body: Any) -> bool:
    """TEI shares its path with others; its requests have `texts`."""
    return path == "/rerank" and isinstance(body, dict) and "texts" in body
