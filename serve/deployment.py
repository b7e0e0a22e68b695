"""The endpoint on Ray Serve: one replica, one reranker, one queue.

`app` is what `serve deploy` and `serve run` import; `shardrank serve` calls `application`.
"""

import os
import tempfile
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.reranker import Reranker
from shardrank.cluster import worker_environment
from shardrank.serve.app import check_health, create_app
from shardrank.serve.errors import NotReady
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.service import start_service
from shardrank.serve.settings import Limits, ServeSettings

APP_NAME = "shardrank"
_MAX_ONGOING = 1_000
"""Requests in a replica at once: its own queue decides who waits and who comes back later."""


def keys_of(settings: ServeSettings) -> ApiKeys:
    """Raises ValueError on a keys file that cannot be used."""
    return ApiKeys.load(settings.keys_file, settings.keys_text)


@serve.deployment(
    name="Reranker",
    max_ongoing_requests=_MAX_ONGOING,
    graceful_shutdown_timeout_s=60,
    health_check_period_s=10,
    health_check_timeout_s=60,
)
@serve.ingress()
class RerankEndpoint:
    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._reranker = Reranker(settings.engine)  # here, so that Serve tells what went wrong
        self._reranker.scorer.warm_up()  # Serve's first probe waits for seconds only
        self._app: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        start = partial(start_service, reranker=self._reranker)
        self._app = create_app(self._settings, keys_of(self._settings), start)
        return self._app

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that does not score."""
        service = self._app.state.service
        if service is not None:
            try:
                await check_health(service)
            except NotReady as error:
                raise RuntimeError(str(error)) from error


def application(settings: ServeSettings, num_replicas: int = 1, num_gpus: float = 0) -> Application:
    """num_gpus: of one replica."""
    environment = {"PROMETHEUS_MULTIPROC_DIR": metrics_directory(), **worker_environment()}
    actor = {"num_gpus": num_gpus, "num_cpus": 1, "runtime_env": {"env_vars": environment}}
    endpoint: Any = RerankEndpoint  # a Deployment, by the decorator
    return endpoint.options(num_replicas=num_replicas, ray_actor_options=actor).bind(settings)


def metrics_directory() -> str:
    """Where the replicas of one node add up their metrics."""
    return os.path.join(tempfile.gettempdir(), f"shardrank-metrics-{os.getuid()}")


class AppArguments(BaseModel):
    """`args` of serve/config.yaml. Unknown names are an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    instruction: str | None = None
    max_length: int | None = None
    empty: str = "error"
    image_depth: str = "scale"
    threads: int | None = None
    max_batch_tokens: int | None = None
    compile: bool | None = None
    video_reader: str = "pyav"
    served_name: str | None = None
    strict_model: bool = False
    keys_file: str | None = None
    is_open: bool = False
    max_queue_s: float = 5.0
    web_media: bool = True
    allowed_networks: list[str] = []
    price_per_million_tokens: float | None = None
    limits: dict[str, Any] = {}

    def settings(self, keys_text: str | None) -> ServeSettings:
        """Raises ValueError."""
        limits = Limits(**self.limits)
        config: dict[str, Any] = {"instruction": self.instruction} if self.instruction else {}
        return ServeSettings(
            reranker=RerankerConfig(
                model=self.model,
                revision=self.revision,
                device=self.device,
                dtype=self.dtype,  # type: ignore[arg-type]
                options=QueryOptions(max_length=self.max_length),
                empty=self.empty,  # type: ignore[arg-type]
                image_depth=self.image_depth,  # type: ignore[arg-type]
                num_threads=self.threads,
                max_batch_tokens=self.max_batch_tokens,
                compile=self.compile,
                video_reader=self.video_reader,  # type: ignore[arg-type]
                **config,
            ),
            served_name=self.served_name,
            is_strict_model=self.strict_model,
            limits=limits,
            web=WebMedia(allowed_networks=tuple(self.allowed_networks)) if self.web_media else None,
            keys_file=self.keys_file,
            keys_text=keys_text,
            max_queue_s=self.max_queue_s,
            price_per_million_tokens=self.price_per_million_tokens,
        )


def app(args: AppArguments) -> Application:
    """For `serve deploy`: replicas and GPUs are the config's business.

    Raises ValueError where there are no keys and `is_open` does not say that this is meant.
    """
    settings = args.settings(os.environ.get("SHARDRANK_API_KEYS"))
    if keys_of(settings).is_open and not args.is_open:
        raise ValueError(
            "no API keys: give keys_file, or SHARDRANK_API_KEYS in the environment, "
            "or is_open: true where everybody who reaches the port may use it"
        )
    return application(settings)
