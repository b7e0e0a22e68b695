"""What the proxy does with a request whose replica dies of it."""

import asyncio
import json
from typing import Any

import pytest

from shardrank.serve.proxy import AskAnotherReplica


def ask(app: Any, method: str, body: bytes = b"", path: str = "/v2/rerank") -> list[dict[str, Any]]:
    """What the caller is sent."""
    sent: list[dict[str, Any]] = []
    coming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return coming.pop(0) if coming else await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(AskAnotherReplica(app)(scope, receive, send))
    return sent


class Replicas:
    """Who is sent `deadly` dies of it; so does, of anything, each of the first num_dying."""

    def __init__(self, num_dying: int = 0) -> None:
        self.num_dying = num_dying
        self.num_asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await asyncio.wait_for(receive(), 5)
        self.num_asked += 1
        if message["body"] == b"deadly" or self.num_asked <= self.num_dying:
            raise RuntimeError("the replica died")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def test_a_request_that_kills_a_replica_is_not_sent_to_another_one():
    replicas = Replicas()
    start, body = ask(replicas, "POST", b"deadly")
    assert replicas.num_asked == 1
    assert start["status"] == 500 and b"retry-after" not in dict(start["headers"])
    assert json.loads(body["body"])["error"]["code"] == "replica_lost"


@pytest.mark.parametrize(("num_dying", "status"), [(0, 200), (1, 200), (3, 200), (4, 503)])
def test_what_has_no_body_is_asked_again(num_dying, status):
    replicas = Replicas(num_dying)
    assert ask(replicas, "GET")[0]["status"] == status
    assert replicas.num_asked == min(num_dying + 1, 4)


@pytest.mark.parametrize("path", ["/-/routes", "/-/routes/"])
def test_serves_own_list_of_applications_is_nobodys(path):
    replicas = Replicas()
    assert ask(replicas, "GET", path=path)[0]["status"] == 404
    assert replicas.num_asked == 0
