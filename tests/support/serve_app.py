"""A running endpoint for tests: the real application and the tiny real model, without Ray.

`running` puts it behind a port, for anybody's clients.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from shardrank.actors.config import RerankerConfig
from shardrank.serve.app import create_app
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.service import start_service
from shardrank.serve.settings import ServeSettings

TINY = Path(__file__).parents[1] / "golden" / "tiny"


def settings(**changes: Any) -> ServeSettings:
    torch.set_num_threads(1)
    config = RerankerConfig(model=str(TINY), device="cpu", num_threads=1)
    return ServeSettings(**{"reranker": config} | changes)


@contextlib.contextmanager
def running(keys: ApiKeys | None = None, **changes: Any) -> Iterator[str]:
    """The base URL of a server in a thread of its own."""
    app = create_app(settings(**changes), keys or ApiKeys.open(), start_service)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listening]),))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            await_ready(url)
            yield url
        finally:
            server.should_exit = True
            thread.join()


def await_ready(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready", timeout=1).status_code == 200:
                return
        threading.Event().wait(0.1)
    raise RuntimeError("the server did not start")
