"""What the server says of itself: its page, whether it is well, its models and its figures."""

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from shardrank.actors.data import CandidateSet
from shardrank.serve.dialects import openapi
from shardrank.serve.dialects.answers import Naming
from shardrank.serve.errors import ModelNotFound, NotReady, TooManyRequests
from shardrank.serve.metrics import CONTENT_TYPE
from shardrank.serve.playground import CONTENT_SECURITY_POLICY, page
from shardrank.serve.service import Service, loaded
from shardrank.serve.settings import ServeSettings

_HEALTH_TIMEOUT_S = 20.0


def add_about(app: FastAPI, settings: ServeSettings, wants_key: bool) -> None:
    state = app.state
    naming: Naming = state.naming
    models = [_model(name, task) for name, task in settings.models.items()]

    def main() -> Service | None:
        return state.service or state.embedding

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        service = main()
        html = page(settings.model_name, service.guide if service else None)
        return HTMLResponse(html, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    @app.get("/health", responses=openapi.UNAVAILABLE)
    async def health() -> dict[str, Any]:
        """Scores or embeds something; busy with others' requests is healthy too."""
        loaded(main())
        services = filter(None, (state.service, state.embedding))
        found = [await check_health(service) for service in services]
        return {"status": "busy" if "busy" in found else "ok"}

    @app.get("/.well-known/ready", include_in_schema=False)  # Weaviate's
    @app.get("/ready", responses=openapi.UNAVAILABLE)
    async def ready() -> dict[str, str]:
        """Whether requests are taken: the model is loaded, and nothing is being shut down."""
        loaded(main())
        return {"status": "ready"}

    @app.get("/v1/models", responses=openapi.REFUSED)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": models}

    @app.get("/models", responses=openapi.REFUSED)
    @app.get("/infinity/models", responses=openapi.REFUSED)
    async def list_infinity_models() -> dict[str, Any]:
        """Infinity's."""
        # Its client takes no other owner, and no model without `stats`.
        own = {"owned_by": "infinity", "backend": "torch", "stats": {}}
        known = [{"capabilities": model["model_ability"]} for model in models]
        data = [model | own | can for model, can in zip(models, known, strict=True)]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}", responses=openapi.REFUSED | openapi.failures(404))
    async def model(name: str) -> dict[str, Any]:
        named = settings.models | _paths(settings)
        if name not in named:
            raise ModelNotFound.of(name, settings.model_name)
        return next(model for model in models if model["model_type"] == named[name])

    @app.get("/v1/cluster/auth", include_in_schema=False)
    async def cluster_auth() -> dict[str, bool]:
        """Xinference's."""
        return {"auth": wants_key}

    @app.get("/info", responses=openapi.REFUSED | openapi.UNAVAILABLE)
    async def info() -> dict[str, Any]:
        """TEI's."""
        service, dtype = loaded(main()), settings.reranker.dtype
        if dtype == "auto":
            dtype = "bfloat16" if service.device_type == "cuda" else "float32"
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        pooled = {"embedding": {"pooling": "last_token"}}
        return {
            "model_id": naming.model,
            "model_sha": settings.reranker.revision,
            "model_dtype": dtype,
            "model_type": {"reranker": labels} if state.service else pooled,
            "max_input_length": service.max_tokens,
            "max_client_batch_size": settings.limits.max_documents,
            "auto_truncate": True,
            "tokenization_workers": settings.num_preparing,
            "version": naming.version,
        }

    @app.get("/metrics", response_class=Response, responses=openapi.METRICS)
    async def metrics() -> Response:
        """Prometheus's text format."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)


def _paths(settings: ServeSettings) -> dict[str, str]:
    """What each model does, by its path."""
    engines = (settings.engine, settings.embedding_engine)
    return {engine.model: engine.task for engine in engines if engine is not None}


def _model(name: str, task: str) -> dict[str, Any]:
    """OpenAI's, with what Xinference's clients read beside it."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "shardrank",
        "model_name": name,
        "model_type": task,
        "model_ability": [task],
    }


async def check_health(service: Service) -> str:
    """Raises ApiError where the model does not score, or embed."""
    try:
        probe = CandidateSet.parse("health", ["health"])
        scores = await service.queue.score([probe], timeout_s=_HEALTH_TIMEOUT_S)
    except TooManyRequests:
        return "busy"
    error = scores[0][0].error
    if error is not None:
        raise NotReady(f"the model does not score: {error}", code=error.code)
    return "ok"
