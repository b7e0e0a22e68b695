"""The endpoint's routes: a request of any dialect to the service, its scores back in that dialect.

A FastAPI application that runs under any ASGI server; the deployment runs it on Ray Serve.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from shardrank.actors.data import CandidateSet
from shardrank.serve.dialects import answers, models, openapi
from shardrank.serve.dialects.answers import DASHSCOPE_PATH, SHAPED_PATHS
from shardrank.serve.dialects.bodies import BodyRoute
from shardrank.serve.dialects.failures import Json, add_errors
from shardrank.serve.dialects.requests import DashScopeRequest, RerankRequest, ScoreRequest
from shardrank.serve.errors import InvalidRequest, ModelNotFound, NotReady, TooManyRequests
from shardrank.serve.gate.gate import Gate
from shardrank.serve.gate.keys import ApiKeys, WatchedKeys
from shardrank.serve.metrics import CONTENT_TYPE, Metrics
from shardrank.serve.playground import CONTENT_SECURITY_POLICY, page
from shardrank.serve.service import RerankService
from shardrank.serve.settings import ServeSettings

StartService = Callable[[ServeSettings, Metrics], RerankService]
_HEALTH_TIMEOUT_S = 20.0
_DRAIN_S = 30.0


def create_app(
    settings: ServeSettings, keys: ApiKeys | WatchedKeys, start_service: StartService
) -> FastAPI:
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
        metrics.close()

    app = FastAPIOffline(  # its /docs loads nothing from elsewhere
        title="ShardRank",
        version=version("shardrank"),
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        default_response_class=Json,
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = BodyRoute
    app.state.service = None
    app.state.metrics = metrics
    app.state.naming = answers.Naming(
        settings.model_name, version("shardrank"), settings.price_per_million_tokens
    )

    def check_room() -> None:
        if app.state.service is not None:
            app.state.service.queue.check_any_room()

    app.add_middleware(
        Gate,
        keys=keys,
        limits=settings.limits,
        metrics=metrics,
        check_room=check_room,
        is_local=settings.is_local,
        access_log=settings.access_log,
    )
    if settings.cors_origins:  # outside the gate: a browser asks without a key first
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    if not keys.is_open:
        openapi.add_security(app)
    add_errors(app)
    _add_rerank_routes(app)
    _add_other_routes(app, settings, wants_key=not keys.is_open)
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
        *SHAPED_PATHS,
        answer=openapi.RerankAnswer | list[openapi.TeiResult] | openapi.NimAnswer,
        failure=openapi.Failure | openapi.TeiFailure,
    )
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """By the field of the documents: canonical; with `texts` TEI's, with `passages` NIM's.

        With `property` Weaviate's too; `input` is Mixedbread's, whose answer is canonical.
        """
        if body.documents_field == "texts":
            return await _tei(body, request)
        if body.documents_field == "passages":
            body = _without_null_scores(body)
            scored = await _service(request).rerank(body)
            return Json(answers.nim(scored, body, request.app.state.naming))
        if body.documents_field == "input":
            return await _canonical(body, request, bool(body.return_input))
        return await _canonical(body, request, body.return_documents is not False)

    @post(
        "/v1/reranks",
        "/reranks",
        "/compatible-api/v1/reranks",
        answer=openapi.RerankAnswer,
    )
    async def reranks(body: RerankRequest, request: Request) -> Response:
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
        headers = answers.headers(scored, body, request.app.state.naming)
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
        if body.is_of_weaviate:
            body = _without_null_scores(body)
        scored = await _service(request).rerank(body)
        answer = answers.canonical(scored, body, request.app.state.naming, returns_documents)
        return Json(answer | (answers.weaviate(scored, body) if body.is_of_weaviate else {}))

    async def _tei(body: RerankRequest, request: Request) -> Response:
        body = _without_null_scores(body)
        started = time.monotonic()
        scored = await _service(request).rerank(body)
        milliseconds = str(round((time.monotonic() - started) * 1_000))
        headers = {
            "x-compute-type": "gpu+optimized" if _is_cuda(request) else "cpu",
            "x-compute-time": milliseconds,
            "x-total-time": milliseconds,
        }
        headers |= answers.headers(scored, body, request.app.state.naming)
        return Json(answers.tei(scored, body), headers=headers)


_Body = TypeVar("_Body", RerankRequest, ScoreRequest)


def _without_null_scores(body: _Body) -> _Body:
    """For dialects whose clients know no null score: a document that fails fails all by default."""
    return body if body.on_error else body.model_copy(update={"on_error": "fail"})


def _add_other_routes(app: FastAPI, settings: ServeSettings, wants_key: bool) -> None:
    @app.get("/", include_in_schema=False)
    async def playground(request: Request) -> Response:
        service: RerankService | None = request.app.state.service
        html = page(settings.model_name, service.guide if service else None)
        return HTMLResponse(html, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    @app.get("/health", responses=openapi.UNAVAILABLE)
    async def health(request: Request) -> dict[str, Any]:
        """Scores something; busy with others' requests is healthy too."""
        return {"status": await check_health(_service(request))}

    @app.get("/.well-known/ready", include_in_schema=False)  # Weaviate's
    @app.get("/ready", responses=openapi.UNAVAILABLE)
    async def ready(request: Request) -> dict[str, str]:
        """Whether requests are taken: the model is loaded, and nothing is being shut down."""
        _service(request)
        return {"status": "ready"}

    naming = app.state.naming

    @app.get("/v1/models", responses=openapi.REFUSED)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [models.model(naming)]}

    @app.get("/models", responses=openapi.REFUSED)
    @app.get("/infinity/models", responses=openapi.REFUSED)
    async def list_infinity_models() -> dict[str, Any]:
        """Infinity's."""
        return {"object": "list", "data": [models.infinity_model(naming)]}

    @app.get("/v1/models/{name:path}", responses=openapi.REFUSED | openapi.failures(404))
    async def model(name: str) -> dict[str, Any]:
        if name not in settings.names:
            raise ModelNotFound.of(name, settings.model_name)
        return models.model(naming)

    @app.get("/v1/cluster/auth", include_in_schema=False)
    async def cluster_auth() -> dict[str, bool]:
        """Xinference's."""
        return {"auth": wants_key}

    @app.get("/info", responses=openapi.REFUSED | openapi.UNAVAILABLE)
    async def info(request: Request) -> dict[str, Any]:
        """TEI's."""
        service = _service(request)
        return models.info(naming, settings, service.max_tokens, service.device_type)

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
