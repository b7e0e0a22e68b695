"""Bodies read in a thread: parsing and checking a large one takes seconds, which the event loop of
all callers has not.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

_LOOKED_AT_BYTES = 1 << 16
_NAME = re.compile(rb'"(\w+)"\s*:')


def outline(body: bytes) -> dict[str, None]:
    """Names of fields at its beginning and end, nested ones too: enough to tell the dialect of a
    body that was refused, which is not worth parsing.
    """
    shown = body[:_LOOKED_AT_BYTES] + body[_LOOKED_AT_BYTES:][-_LOOKED_AT_BYTES:]
    return dict.fromkeys(name.decode() for name in _NAME.findall(shown))


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
