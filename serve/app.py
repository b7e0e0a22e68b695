"""The endpoint's routes: a request of any dialect to the service, its scores back in that dialect.

A FastAPI application that runs under any ASGI server; the deployment runs it on Ray Serve.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from shardrank.actors.data import CandidateSet
from shardrank.serve.dialects import openapi
from shardrank.serve.dialects.answers import Dialect, Json, Naming
from shardrank.serve.dialects.failures import add_errors
from shardrank.serve.dialects.others import DIALECTS, headers
from shardrank.serve.dialects.requests import BodyRoute
from shardrank.serve.errors import ModelNotFound, NotReady, TooManyRequests
from shardrank.serve.gate.gate import Gate
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.metrics import CONTENT_TYPE, Metrics
from shardrank.serve.playground import CONTENT_SECURITY_POLICY, page
from shardrank.serve.service import RerankService
from shardrank.serve.settings import ServeSettings

StartService = Callable[[ServeSettings, Metrics], RerankService]
_HEALTH_TIMEOUT_S = 20.0
_DRAIN_S = 30.0


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
    app.state.naming = Naming(
        settings.model_name, version("shardrank"), settings.price_per_million_tokens
    )

    def check_room() -> None:
        if app.state.service is not None:
            app.state.service.queue.check_any_room()

    app.add_middleware(
        Gate,
        settings=settings,
        keys=keys,
        metrics=metrics,
        check_room=check_room,
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
    _add_routes_that_score(app)
    _add_other_routes(app, settings, wants_key=not keys.is_open)
    return app


def _add_routes_that_score(app: FastAPI) -> None:
    for dialect in DIALECTS:
        for path in dialect.paths:
            app.post(
                path,
                name=dialect.name,
                description=inspect.getdoc(dialect.write),
                response_model=None,
                responses=openapi.responses(dialect.answer, dialect.failure),
            )(_endpoint(dialect))


def _endpoint(dialect: Dialect) -> Callable[..., Any]:
    async def score(body: Any, request: Request) -> Response:
        wanted = dialect.wanted(body)
        scored = await _service(request).score(wanted)
        naming = replace(request.app.state.naming, request_id=request.state.request_id)
        content = dialect.write(scored, wanted, naming)
        is_bare = isinstance(content, list)
        return Json(content, headers=headers(scored, wanted, naming) if is_bare else None)

    score.__annotations__["body"] = dialect.request
    return score


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
        return {"object": "list", "data": [_model(naming)]}

    @app.get("/models", responses=openapi.REFUSED)
    @app.get("/infinity/models", responses=openapi.REFUSED)
    async def list_infinity_models() -> dict[str, Any]:
        """Infinity's."""
        return {"object": "list", "data": [_infinity_model(naming)]}

    @app.get("/v1/models/{name:path}", responses=openapi.REFUSED | openapi.failures(404))
    async def model(name: str) -> dict[str, Any]:
        if name not in settings.names:
            raise ModelNotFound.of(name, settings.model_name)
        return _model(naming)

    @app.get("/v1/cluster/auth", include_in_schema=False)
    async def cluster_auth() -> dict[str, bool]:
        """Xinference's."""
        return {"auth": wants_key}

    @app.get("/info", responses=openapi.REFUSED | openapi.UNAVAILABLE)
    async def info(request: Request) -> dict[str, Any]:
        """TEI's."""
        service = _service(request)
        return _info(naming, settings, service.max_tokens, service.device_type)

    @app.get("/metrics", response_class=Response, responses=openapi.METRICS)
    async def metrics(request: Request) -> Response:
        """Prometheus's text format."""
        return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


def _model(naming: Naming) -> dict[str, Any]:
    """OpenAI's, with what Xinference's clients read beside it."""
    return {
        "id": naming.model,
        "object": "model",
        "created": 0,
        "owned_by": "shardrank",
        "model_name": naming.model,
        "model_type": "rerank",
        "model_ability": ["rerank"],
    }


def _infinity_model(naming: Naming) -> dict[str, Any]:
    """Infinity's client takes no other owner, and no model without `stats`."""
    own = {"owned_by": "infinity", "backend": "torch", "capabilities": ["rerank"], "stats": {}}
    return _model(naming) | own


def _info(
    naming: Naming, settings: ServeSettings, max_tokens: int, device_type: str
) -> dict[str, Any]:
    """TEI's /info. max_tokens: of a whole pair."""
    dtype = settings.reranker.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device_type == "cuda" else "float32"
    return {
        "model_id": naming.model,
        "model_sha": settings.reranker.revision,
        "model_dtype": dtype,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": max_tokens,
        "max_client_batch_size": settings.limits.max_documents,
        "auto_truncate": True,
        "tokenization_workers": settings.num_preparing,
        "version": naming.version,
    }


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
        raise NotReady.of_server()
    return service
