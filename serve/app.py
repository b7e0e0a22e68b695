"""The endpoint's routes: a request of any dialect to the service, its scores back in that dialect.

A FastAPI application that runs under any ASGI server; the deployment runs it on Ray Serve.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from shardrank.actors.data import CandidateSet
from shardrank.serve.dialects import answers, openapi
from shardrank.serve.dialects.answers import DASHSCOPE_PATH, body_of, is_tei
from shardrank.serve.dialects.requests import DashScopeRequest, RerankRequest, ScoreRequest
from shardrank.serve.errors import ApiError, InvalidRequest, NotReady, TooManyRequests
from shardrank.serve.gate.gate import Gate
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.metrics import CONTENT_TYPE, Metrics
from shardrank.serve.playground import CONTENT_SECURITY_POLICY, page
from shardrank.serve.service import RerankService
from shardrank.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

StartService = Callable[[ServeSettings, Metrics], RerankService]
_HEALTH_TIMEOUT_S = 20.0
_DRAIN_S = 30.0


class Json(JSONResponse):
    """Half a surrogate pair, which many readers refuse even as its escape, is a question mark."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def create_app(settings: ServeSettings, keys: ApiKeys, start_service: StartService) -> FastAPI:
    """start_service loads the model; it is called in a thread before the first request."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = await asyncio.to_thread(start_service, settings, metrics)
        await service.start()
        app.state.service = service
        yield
        app.state.service = None
        await service.stop(_DRAIN_S)

    app = FastAPI(
        title="ShardRank",
        version=version("shardrank"),
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        default_response_class=Json,
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.service = None
    app.state.metrics = metrics
    app.state.naming = answers.Naming(
        settings.model_name, version("shardrank"), settings.price_per_million_tokens
    )

    def check_room() -> None:
        if app.state.service is not None:
            app.state.service.queue.check_room(num_pairs=1)

    app.add_middleware(
        Gate, keys=keys, limits=settings.limits, metrics=metrics, check_room=check_room
    )
    _add_errors(app)
    _add_rerank_routes(app)
    _add_other_routes(app, settings)
    return app


def _add_rerank_routes(app: FastAPI) -> None:
    def post(*paths: str, answer: Any, failure: Any = openapi.Failure) -> Callable[[Any], Any]:
        responses = openapi.responses(answer, failure)

        def register(endpoint: Any) -> Any:
            for path in paths:
                app.post(path, response_model=None, responses=responses)(endpoint)
            return endpoint

        return register

    @post(
        "/rerank",
        answer=openapi.RerankAnswer | list[openapi.TeiResult],
        failure=openapi.Failure | openapi.TeiFailure,
    )
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Canonical; with `texts` TEI's."""
        if not body.is_tei:
            return await v1_rerank(body, request)
        body = _without_null_scores(body)
        started = time.monotonic()
        scored = await _service(request).rerank(body)
        milliseconds = str(round((time.monotonic() - started) * 1_000))
        headers = {
            "x-compute-type": "gpu+optimized" if _is_cuda(request) else "cpu",
            "x-compute-time": milliseconds,
            "x-total-time": milliseconds,
        }
        headers |= answers.headers(scored, request.app.state.naming)
        return Json(answers.tei(scored, body), headers=headers)

    @post("/v1/rerank", "/v1/reranks", answer=openapi.RerankAnswer)
    async def v1_rerank(body: RerankRequest, request: Request) -> Response:
        """Canonical, texts echoed unless that is declined."""
        return await _canonical(body, request, body.return_documents is not False)

    @post("/v2/rerank", answer=openapi.RerankAnswer)
    async def v2_rerank(body: RerankRequest, request: Request) -> Response:
        """Canonical, texts echoed if that is asked for."""
        return await _canonical(body, request, bool(body.return_documents))

    @post("/infinity/rerank", "/infinity/v1/rerank", answer=openapi.RerankAnswer)
    async def infinity_rerank(body: RerankRequest, request: Request) -> Response:
        """Documents come back as strings."""
        if body.top_n == 0:
            raise InvalidRequest("top_n must be above zero, got 0", param="top_n")
        body = _without_null_scores(body)
        scored = await _service(request).rerank(body)
        naming = request.app.state.naming
        return Json(answers.infinity(scored, body, naming, bool(body.return_documents)))

    @post("/sglang/v1/rerank", "/sglang/rerank", answer=list[openapi.SglangResult])
    async def sglang_rerank(body: RerankRequest, request: Request) -> Response:
        """A bare list."""
        if body.top_n == 0:
            raise InvalidRequest("top_n must be at least 1, got 0", param="top_n")
        scored = await _service(request).rerank(body)
        headers = answers.headers(scored, request.app.state.naming)
        return Json(answers.sglang(scored, body), headers=headers)

    @post("/score", "/v1/score", answer=openapi.ScoreAnswer)
    async def score(body: ScoreRequest, request: Request) -> Response:
        """vLLM's, in input order."""
        body = _without_null_scores(body)
        scored = await _service(request).score(body)
        return Json(answers.scores(scored, body.is_raw, request.app.state.naming))

    @post(DASHSCOPE_PATH, answer=openapi.DashScopeAnswer, failure=openapi.DashScopeFailure)
    async def dashscope_rerank(body: DashScopeRequest, request: Request) -> Response:
        wanted = body.as_rerank()
        scored = await _service(request).rerank(wanted)
        naming = request.app.state.naming
        return Json(answers.dashscope(scored, wanted, naming, request.state.request_id))

    async def _canonical(
        body: RerankRequest, request: Request, returns_documents: bool
    ) -> Response:
        scored = await _service(request).rerank(body)
        naming = request.app.state.naming
        return Json(answers.canonical(scored, body, naming, returns_documents))


_Body = TypeVar("_Body", RerankRequest, ScoreRequest)


def _without_null_scores(body: _Body) -> _Body:
    """For dialects whose clients know no null score: a document that fails fails all by default."""
    return body if body.on_error else body.model_copy(update={"on_error": "fail"})


def _add_other_routes(app: FastAPI, settings: ServeSettings) -> None:
    @app.get("/", include_in_schema=False)
    async def playground(request: Request) -> Response:
        service: RerankService | None = request.app.state.service
        html = page(settings.model_name, service.guide if service else None)
        return HTMLResponse(html, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    @app.get("/health", responses=openapi.UNAVAILABLE)
    async def health(request: Request) -> dict[str, Any]:
        """Scores something; busy with others' requests is healthy too."""
        return {"status": await check_health(_service(request))}

    @app.get("/ready", responses=openapi.UNAVAILABLE)
    async def ready(request: Request) -> dict[str, str]:
        """Whether requests are taken: the model is loaded, and nothing is being shut down."""
        _service(request)
        return {"status": "ready"}

    @app.get("/v1/models", responses=openapi.REFUSED)
    @app.get("/models", responses=openapi.REFUSED)
    async def models() -> dict[str, Any]:
        model = {"id": settings.model_name, "object": "model", "owned_by": "shardrank"}
        return {"object": "list", "data": [model | {"created": 0}]}

    @app.get("/metrics", response_class=Response, responses=openapi.METRICS)
    async def metrics(request: Request) -> Response:
        """Prometheus's text format."""
        return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


async def check_health(service: RerankService) -> str:
    """Raises ApiError where the model does not score."""
    try:
        probe = CandidateSet.parse("health", ["health"])
        scores = await service.queue.score([probe], timeout_s=_HEALTH_TIMEOUT_S)
    except TooManyRequests:
        return "busy"
    error = scores[0][0].error
    if error is not None:
        raise NotReady(f"the model does not score: {error}", code=error.code)
    return "ok"


def _service(request: Request) -> RerankService:
    service = request.app.state.service
    if service is None:
        raise NotReady("the server is starting or stopping, try again", retry_after_s=1)
    return service


def _is_cuda(request: Request) -> bool:
    return _service(request).device_type == "cuda"


def _add_errors(app: FastAPI) -> None:
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


async def _body_again(request: Request) -> Any:
    """The body that was read, for the dialect of an error."""
    if request.url.path != "/rerank":
        return None
    try:
        return await request.json()
    except (ValueError, RecursionError):
        return None
