"""What the endpoint answers when it does not score, as exceptions with a status.

    ApiError
    ├── BadRequest           400  content that cannot be scored, under on_error = fail
    ├── Unauthorized         401  no key, or a wrong one
    ├── ModelNotFound        404  another model, where the server is strict about names
    ├── BodyTooLarge         413
    ├── UnreadableEncoding   415  a body that is compressed
    ├── Misdirected          421  a Host header that is not this server's
    ├── InvalidRequest       422  a field that is missing, of the wrong type or out of range
    ├── TooManyRequests      429  a key's own limit, or no capacity left: Retry-After says when
    ├── NotReady             503  the model is loading, or a replica was lost: Retry-After
    └── DeadlineExceeded     504

What TEI's and DashScope's clients are told is their dialects' business. Knows nothing about HTTP
frameworks.
"""

import math
from typing import Any

from shardrank.actors.errors import RerankError


class ApiError(Exception):
    """status, type and code are stable; the message is a sentence for people.

    param: the request's field at fault; retry_after_s: when it is worth trying again.
    """

    status = 500
    type = "internal_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s

    @classmethod
    def of_http(cls, status: int, message: str) -> "ApiError":
        """A status that no class here has."""
        error = cls(message, code="http_error")
        error.status, error.type = status, InvalidRequest.type
        return error

    def body(self, request_id: str) -> dict[str, Any]:
        """It serves the readers of `error`, of `message` and of `detail`."""
        message = str(self)
        told = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told, "message": message, "detail": message, "request_id": request_id}

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class BadRequest(ApiError):
    status, type, code = 400, "invalid_request_error", "bad_request"

    @classmethod
    def of(cls, error: RerankError, param: str | None = None) -> "BadRequest":
        """The engine's error about a query or document, with its own code, which names it."""
        sentence = str(error)
        if param is not None and param not in sentence:
            sentence = f"{param}: {sentence}"
        return cls(sentence, param=param, code=error.code)


class Unauthorized(ApiError):
    """is_for_browser: one that is told of Basic asks its user, who gives the key as password."""

    status, type, code = 401, "authentication_error", "invalid_api_key"
    is_for_browser = False

    @property
    def headers(self) -> dict[str, str]:
        basic = ', Basic realm="ShardRank: the API key as password"' if self.is_for_browser else ""
        return {"WWW-Authenticate": f"Bearer{basic}"}


class ModelNotFound(ApiError):
    status, type, code = 404, "not_found_error", "model_not_found"

    @classmethod
    def of(cls, name: str, served: str) -> "ModelNotFound":
        return cls(f"model {name!r} is not served here, {served!r} is", param="model")


class BodyTooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "body_too_large"


class Misdirected(ApiError):
    status, type, code = 421, "invalid_request_error", "misdirected"


class UnreadableEncoding(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_content_encoding"


class InvalidRequest(ApiError):
    status, type, code = 422, "invalid_request_error", "invalid_request"


class TooManyRequests(ApiError):
    status, type, code = 429, "rate_limit_error", "rate_limited"


class NotReady(ApiError):
    status, type, code = 503, "unavailable_error", "not_ready"

    @classmethod
    def of_server(cls, retry_after_s: float = 1) -> "NotReady":
        """The server has not loaded its model yet, or takes no more."""
        return cls("the server is starting or stopping, try again", retry_after_s=retry_after_s)


class DeadlineExceeded(ApiError):
    status, type, code = 504, "timeout_error", "deadline_exceeded"


class NotStarted(OSError):
    """The endpoint did not start; the message says why."""

    @classmethod
    def of_port(cls, host: str, port: int) -> "NotStarted":
        return cls(f"port {port} of {host} is in use: choose another one with --port")
