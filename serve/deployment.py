"""The endpoint on Ray Serve: one replica, one reranker, one queue.

`app` is what `serve deploy` and `serve run` import; `shardrank serve` calls `deploy`. A
replica imports the endpoint itself late: prometheus_client reads where to write as it is imported.
"""

import logging
import os
import re
import signal
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import ray
from pydantic import ConfigDict, create_model
from ray import serve
from ray.serve import Application
from ray.serve._private import replica

from shardrank.actors.embedder import Embedder
from shardrank.actors.reranker import Reranker
from shardrank.cluster import worker_environment
from shardrank.options import Option, built
from shardrank.serve.console import say
from shardrank.serve.errors import NotReady, NotStarted
from shardrank.serve.gate.key_file import KEYS_VARIABLE, ApiKey, environment_keys
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.settings import ENDPOINT, LIMITS, Limits, ServeSettings

APP_NAME = "shardrank"
LOOPBACK = "127.0.0.1"
_MAX_ONGOING = 1_000
"""Requests in a replica at once: its own queue decides who waits and who comes back later."""
STOPPING_S = 50
"""So long a replica that is to stop finishes what is in work. `serve.delete` waits 60 s: then the
proxies are still there to say 503 for what was not finished.
"""
_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def keys_of(settings: ServeSettings) -> ApiKeys:
    """Raises ValueError on a keys file that cannot be used."""
    return ApiKeys.of(settings.keys_file, settings.keys)


@serve.deployment(
    name="Reranker",
    max_ongoing_requests=_MAX_ONGOING,
    graceful_shutdown_timeout_s=STOPPING_S,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=10,
    health_check_timeout_s=60,
)
@serve.ingress()
class RerankEndpoint:
    def __init__(self, settings: ServeSettings) -> None:
        _stay_on_loopback()
        os.environ.setdefault(_METRICS_VARIABLE, _metrics_directory())
        self._settings = settings
        started = time.monotonic()
        # Here, so that Serve tells what went wrong, and its first probe waits for seconds only.
        scoring, embedding = settings.engine, settings.embedding_engine
        self._reranker = None if scoring is None else Reranker(scoring)
        self._embedder = None if embedding is None else Embedder(embedding)
        for engine in (self._reranker, self._embedder):
            if engine is not None:
                engine.scorer.warm_up()
        say(f"a replica has loaded the model in {time.monotonic() - started:.0f} s")
        self._app: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        from shardrank.serve.app import create_app
        from shardrank.serve.embedding import start_embedding
        from shardrank.serve.service import start_service

        start = partial(start_service, reranker=self._reranker)
        embedding = partial(start_embedding, embedder=self._embedder)
        self._app = create_app(self._settings, keys_of(self._settings), start, embedding)
        return self._app

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that does not score."""
        from shardrank.serve.about import check_health

        for service in filter(None, (self._app.state.service, self._app.state.embedding)):
            try:
                await check_health(service)
            except NotReady as error:
                raise RuntimeError(str(error)) from error


def _stay_on_loopback() -> None:
    """On a node of loopback a replica's own port, which takes pickles, is on it too: Serve would
    open it to all, whatever the node's address is.
    """
    if ray.util.get_node_ip_address() != LOOPBACK:
        return
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, place: add_port(
        server, place.replace("[::]", LOOPBACK)
    )


def application(
    settings: ServeSettings,
    num_replicas: int = 1,
    num_gpus: float = 0,
    metrics_directory: str | None = None,
) -> Application:
    """num_gpus: of one replica. metrics_directory: where the replicas add up their metrics, on
    this machine; None: each node has one of its own.
    """
    environment = worker_environment()
    if metrics_directory is not None:
        environment |= {_METRICS_VARIABLE: metrics_directory}
    actor = {"num_gpus": num_gpus, "num_cpus": 1, "runtime_env": {"env_vars": environment}}
    endpoint: Any = RerankEndpoint  # a Deployment, by the decorator
    return endpoint.options(num_replicas=num_replicas, ray_actor_options=actor).bind(settings)


def _metrics_directory() -> str:
    """What the replicas of one application have in common on one node of one cluster."""
    node = ray.get_runtime_context().get_node_id()
    name = serve.get_replica_context().app_name
    return os.path.join(tempfile.gettempdir(), f"shardrank-metrics-{node}-{quote(name, safe='')}")


def deploy(
    settings: ServeSettings, host: str, port: int, num_replicas: int | None, folder: str | None
) -> None:
    """Serve's proxies at a port, and the replicas behind them. Raises NotStarted."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    uses_gpu = settings.reranker.device != "cpu" and gpus > 0
    num_replicas = num_replicas or (gpus if uses_gpu else 1)
    try:
        serve.start(
            http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"}
        )
        where = f"{num_replicas} x {'GPU' if uses_gpu else 'CPU'}"
        say(f"loading {' and '.join(_paths(settings))} on {where} ...")
        metrics = folder and os.path.join(folder, "metrics")
        replicas = application(settings, num_replicas, 1 if uses_gpu else 0, metrics)
        serve.run(replicas, name=APP_NAME)
    except RuntimeError as error:
        if "Failed to bind to address" in str(error):  # since it was checked
            raise NotStarted.of_port(host, port) from error
        raise NotStarted(f"the endpoint did not start: {_cause() or error}") from error
    url = f"http://{host}:{port}"
    say(f"serving {' and '.join(settings.models)} at {url} (API: {url}/docs)")


def _paths(settings: ServeSettings) -> list[str]:
    return [each.model for each in (settings.engine, settings.embedding_engine) if each]


def _cause() -> str:
    """What a replica said last, without its traceback."""
    deployments = [
        deployment
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    ]
    lines = [line for each in deployments for line in each.message.strip().splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or [""])[-1]


def drain() -> None:
    """What comes is told to come back by the proxies, which stay until the replicas have ended."""
    say(
        f"stopping: requests in work are finished first, for up to {STOPPING_S} s; "
        "the same signal again stops at once"
    )
    try:
        serve.delete(APP_NAME)
    except TimeoutError:
        say(f"requests that were not finished within {STOPPING_S} s are lost")


def leave(is_local: bool) -> None:
    """Nobody interrupts it any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if not is_local:  # what others run there stays
        serve.delete(APP_NAME)
        if not serve.status().applications:
            serve.shutdown()


def _model(name: str, options: Mapping[str, Option], **more: Any) -> Any:
    """Unknown names are an error."""
    known = {each: option.field for each, option in options.items()}
    return create_model(name, __config__=ConfigDict(extra="forbid"), **known | more)


_OPTIONS = {name: option for name, option in ENDPOINT.items() if name not in LIMITS}
_Limits = _model("Limits", LIMITS)
_Arguments = _model("Arguments", _OPTIONS, limits=(_Limits, _Limits()), is_open=(bool, False))


class AppArguments(_Arguments):  # type: ignore[misc, valid-type]  # its fields are the endpoint's options
    """`args` of serve/config.yaml; None is the default."""

    def settings(self, keys: tuple[ApiKey, ...] = ()) -> ServeSettings:
        """Raises ValueError."""
        values = self.model_dump(exclude_none=True)
        limits = built(Limits, values["limits"])
        return built(ServeSettings, values, limits=limits, keys=keys)


def app(args: AppArguments) -> Application:
    """For `serve deploy`: replicas and GPUs are the config's business.

    Raises ValueError where there are no keys and `is_open` does not say that this is meant.
    """
    settings = args.settings(environment_keys(os.environ.get(KEYS_VARIABLE)))
    if keys_of(settings).is_open and not args.is_open:
        raise ValueError(
            "no API keys: give keys_file, or SHARDRANK_API_KEYS in the environment, "
            "or is_open: true where everybody who reaches the port may use it"
        )
    return application(settings)
