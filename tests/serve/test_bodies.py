"""Bodies are read off the event loop, and refused ones are not parsed."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, field_validator

from shardrank.serve.app import create_app
from shardrank.serve.dialects.contents import parse_side
from shardrank.serve.dialects.failures import outline
from shardrank.serve.dialects.others import ScoreRequest
from shardrank.serve.dialects.requests import BodyRoute, RerankRequest
from shardrank.serve.errors import TooManyRequests
from shardrank.serve.gate.keys import ApiKeys
from shardrank.serve.metrics import Metrics
from shardrank.serve.queue.batching import BatchQueue
from shardrank.serve.service import start_service
from tests.support.serve_app import settings

THREADS: list[int] = []


class Body(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _seen(cls, value: str) -> str:
        THREADS.append(threading.get_ident())
        return value


def test_a_body_is_checked_once_and_in_another_thread():
    app = FastAPI()
    app.router.route_class = BodyRoute

    @app.post("/")
    async def answer(body: Body) -> dict[str, Any]:
        return {"name": body.name, "loop": threading.get_ident()}

    THREADS.clear()
    answered = TestClient(app).post("/", json={"name": "a"}).json()
    (thread,) = THREADS
    assert answered["name"] == "a" and thread != answered["loop"]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"query": "q", "texts": ["\\"documents\\": x"]}', ["query", "texts"]),
        (b'{"query": "' + b"q" * 1_000_000 + b'", "texts" : []}', ["query", "texts"]),
        (b"", []),
        (b"\xff{", []),
    ],
)
def test_a_refused_body_is_told_by_its_names(body, names):
    assert list(outline(body)) == names


def test_sides_are_read_in_another_thread(monkeypatch):
    threads: set[int] = set()

    def seen(*sides: Any) -> Any:
        threads.add(threading.get_ident())
        return parse_side(*sides)

    async def main() -> int:
        service = start_service(settings(), Metrics())
        await service.start()
        await service.score(RerankRequest(query="q", documents=["a"]))
        await service.score(ScoreRequest(queries="q", documents="a"))
        await service.stop(0)
        return threading.get_ident()

    monkeypatch.setattr("shardrank.serve.dialects.work.parse_side", seen)
    assert asyncio.run(main()) not in threads and threads


def test_a_body_that_there_is_no_room_for_is_not_parsed(monkeypatch):
    parsed: list[int] = []
    loads = json.loads

    def counted(body: Any, **options: Any) -> Any:
        parsed.append(len(body))
        return loads(body, **options)

    def refuse(self: BatchQueue) -> None:
        raise TooManyRequests("no room")

    monkeypatch.setattr(BatchQueue, "check_any_room", refuse)
    body = b'{"query": "q", "texts": ["' + b"x" * 1_000_000 + b'"]}'
    app = create_app(settings(), ApiKeys.open(), start_service)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.1)
        monkeypatch.setattr(json, "loads", counted)
        answer = client.post("/rerank", content=body)
        monkeypatch.undo()
    assert answer.status_code == 429
    assert "error_type" in answer.json()  # TEI's form: its names were seen all the same
    assert parsed == []
