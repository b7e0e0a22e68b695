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
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from shardrank.serve.about import add_about
from shardrank.serve.dialects import openapi
from shardrank.serve.dialects.answers import Dialect, Json, Naming
from shardrank.serve.dialects.embeddings import EMBEDDINGS, EmbeddingDialect
from shardrank.serve.dialects.failures import add_errors
from shardrank.serve.dialects.others import DIALECTS, headers
from shardrank.serve.dialects.requests import BodyRoute
from shardrank.serve.embedding import EmbedService, start_embedding
from shardrank.serve.gate.gate import Gate
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.metrics import Metrics
from shardrank.serve.service import RerankService, loaded
from shardrank.serve.settings import ServeSettings

StartService = Callable[[ServeSettings, Metrics], RerankService | None]
StartEmbedding = Callable[[ServeSettings, Metrics], EmbedService | None]
_DRAIN_S = 30.0


def create_app(
    settings: ServeSettings,
    keys: ApiKeys,
    start_service: StartService,
    start_embedding: StartEmbedding = start_embedding,
) -> FastAPI:
    """start_service and start_embedding load the models; they are called in a thread before the
    first request.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = await asyncio.to_thread(start_service, settings, metrics)
        embedding = await asyncio.to_thread(start_embedding, settings, metrics)
        services = [each for each in (service, embedding) if each is not None]
        for each in services:
            await each.start()
        app.state.service, app.state.embedding = service, embedding
        yield
        app.state.service = app.state.embedding = None
        await asyncio.gather(*(each.stop(_DRAIN_S) for each in services))
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
    app.state.service = app.state.embedding = None
    app.state.metrics = metrics
    app.state.naming = Naming(
        settings.model_name, version("shardrank"), settings.price_per_million_tokens
    )

    def check_room(path: str) -> None:
        is_embedding = path in _EMBEDDING_PATHS
        service = app.state.embedding if is_embedding else app.state.service
        if service is not None:
            service.queue.check_any_room()

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
    if settings.engine is not None:
        _add_routes_that_score(app)
    if settings.embedder is not None:
        _add_routes_that_embed(app)
    add_about(app, settings, wants_key=not keys.is_open)
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


def _add_routes_that_embed(app: FastAPI) -> None:
    for dialect in EMBEDDINGS:
        for path in dialect.paths:
            app.post(
                path,
                name=dialect.name,
                description=inspect.getdoc(dialect.request),
                response_model=None,
                responses=openapi.responses(dict[str, Any], description="Vectors"),
            )(_embedding_endpoint(dialect))


def _embedding_endpoint(dialect: EmbeddingDialect) -> Callable[..., Any]:
    async def embed(body: Any, request: Request) -> Response:
        service = loaded(request.app.state.embedding)
        found = await service.embed(body.wanted())
        naming = replace(request.app.state.naming, model=service.name)
        return Json(await asyncio.to_thread(body.answer, found, naming))

    embed.__annotations__["body"] = dialect.request
    return embed


_EMBEDDING_PATHS = {path for dialect in EMBEDDINGS for path in dialect.paths}


def _endpoint(dialect: Dialect) -> Callable[..., Any]:
    async def score(body: Any, request: Request) -> Response:
        wanted = dialect.wanted(body)
        scored = await loaded(request.app.state.service).score(wanted)
        naming = replace(request.app.state.naming, request_id=request.state.request_id)
        content = dialect.write(scored, wanted, naming)
        is_bare = isinstance(content, list)
        return Json(content, headers=headers(scored, wanted, naming) if is_bare else None)

    score.__annotations__["body"] = dialect.request
    return score
