"""The endpoint as it is fuzzed: limits so small that no request is slow, nothing fetched.

Run as a module, it serves in a process of its own on the socket whose number it is given.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.serve.app import create_app
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.service import start_service
from shardrank.serve.settings import Limits
from tests.support.serve_app import TINY, await_ready, running, settings

SETTINGS: dict[str, Any] = {
    "reranker": RerankerConfig(
        model=str(TINY),
        device="cpu",
        num_threads=1,
        options=QueryOptions(max_length=1_024),
        feature_cache_bytes=1 << 20,  # or what it holds would look like a leak
    ),
    "limits": Limits(
        max_body_bytes=300_000,
        max_documents=64,
        max_media=8,
        max_image_pixels=40_000,
        max_text_chars=20_000,
    ),
    "web": None,
}
ROOT = Path(__file__).resolve().parents[2]
_FEW_PRIMITIVES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
"""As the deployment has it, or every new number of rows would take memory for good."""


@contextlib.contextmanager
def in_this_process() -> Iterator[str]:
    """Its base URL."""
    with running(**SETTINGS) as url:
        yield url


@contextlib.contextmanager
def in_its_own_process(log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its base URL, and the process, which writes what it logs to a file."""
    with socket.socket() as listening, log.open("wb") as output:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        number = listening.fileno()
        command = [sys.executable, "-m", "tests.support.fuzz_server", str(number)]
        environment = os.environ | _FEW_PRIMITIVES
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=[number], stdout=output, stderr=output
        ) as process:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                await_ready(url)
                yield url, process
            finally:
                process.terminate()


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Linux alone says it this way."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    app = create_app(settings(**SETTINGS), ApiKeys.open(), start_service)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    asyncio.run(server.serve(sockets=[socket.socket(fileno=int(sys.argv[1]))]))
