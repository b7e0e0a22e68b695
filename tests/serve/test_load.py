"""Under load, on loopback, bounded in time: `make test-load`. The figures are printed with -s.

The server is `shardrank serve` with the embedded model and one thread; the load comes from this
process. Times are compared with times of the same run only.
"""

import asyncio
import os
import statistics
import time
from pathlib import Path

import httpx
import pytest

from shardrank.actors.reranker import Reranker
from tests.serve.test_deployment import ROOT, printed, replicas, served

pytestmark = [pytest.mark.load, pytest.mark.timeout(900)]

MODEL = ROOT / "demo" / "model"
OPTIONS = ["--threads", "1", "--device", "cpu"]
DOCUMENTS = [f"candidate {number}: a picture of a red apple on a table" for number in range(100)]
REQUEST = {"query": "a red apple", "documents": DOCUMENTS}
NUM_UNLOADED = 60
OVERLOAD = 5
LOADED_S = 30


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def one_after_another(client: httpx.Client, count: int) -> list[float]:
    """Latencies of an unloaded server."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        assert client.post("/v2/rerank", json=REQUEST).status_code == 200
        seconds.append(time.perf_counter() - started)
    return seconds


async def offered(
    url: httpx.URL, per_s: float, seconds: float
) -> list[tuple[httpx.Response, float]]:
    """Requests at a steady rate, whatever becomes of the earlier ones; answers with latencies."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def ask(at: float) -> tuple[httpx.Response, float]:
            await asyncio.sleep(at)
            started = time.perf_counter()
            answer = await client.post("/v2/rerank", json=REQUEST)
            return answer, time.perf_counter() - started

        return await asyncio.gather(*(ask(i / per_s) for i in range(int(per_s * seconds))))


def memory_bytes(pids: list[int]) -> int:
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def unloaded_p99(tmp_path: Path) -> tuple[float, float]:
    """p99 and median of a server that nobody else asks."""
    with served(tmp_path / "unloaded.log", "--model", str(MODEL), *OPTIONS) as (client, _):
        one_after_another(client, 10)
        seconds = one_after_another(client, NUM_UNLOADED)
    return percentile(seconds, 0.99), statistics.median(seconds)


def test_at_five_times_capacity_accepted_requests_stay_fast_and_the_rest_is_told_at_once(tmp_path):
    p99, median = unloaded_p99(tmp_path)
    options = ["--model", str(MODEL), *OPTIONS, "--max-queue-s", str(p99 / 4)]
    with served(tmp_path / "loaded.log", *options) as (client, process):
        one_after_another(client, 10)
        answers = asyncio.run(offered(client.base_url, OVERLOAD / median, LOADED_S))
        before = memory_bytes(replicas(process.pid))
        answers += asyncio.run(offered(client.base_url, OVERLOAD / median, LOADED_S))
        after = memory_bytes(replicas(process.pid))
        assert client.get("/health").status_code == 200
    accepted = [seconds for answer, seconds in answers if answer.status_code == 200]
    refused = [(answer, seconds) for answer, seconds in answers if answer.status_code == 429]
    print(
        f"\nunloaded: median {median:.3f} s, p99 {p99:.3f} s; offered {len(answers)} requests at "
        f"{OVERLOAD / median:.1f}/s ({OVERLOAD} x capacity): {len(accepted)} accepted, "
        f"median {statistics.median(accepted):.3f} s, p99 {percentile(accepted, 0.99):.3f} s "
        f"({percentile(accepted, 0.99) / p99:.2f} x unloaded p99); {len(refused)} told 429, "
        f"p50 {percentile([s for _, s in refused], 0.5):.3f} s; "
        f"replica {before / 2**20:.0f} -> {after / 2**20:.0f} MB"
    )
    assert len(accepted) + len(refused) == len(answers)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer, _ in refused)
    assert len(accepted) >= LOADED_S / median  # of the two rounds, half of what it can do
    assert percentile(accepted, 0.99) <= 2 * p99
    assert percentile([seconds for _, seconds in refused], 0.5) < median
    assert after <= 1.1 * before


def test_http_costs_little_beside_the_model(tmp_path):
    engine = Reranker(str(MODEL), device="cpu", num_threads=1)
    alone: list[float] = []
    with served(tmp_path / "log", "--model", str(MODEL), *OPTIONS) as (client, _):
        one_after_another(client, 10)
        over_http: list[float] = []
        for _ in range(30):  # in turns
            started = time.perf_counter()
            engine.score(REQUEST["query"], DOCUMENTS)
            alone.append(time.perf_counter() - started)
            over_http += one_after_another(client, 1)
    ratio = statistics.median(over_http) / statistics.median(alone)
    print(
        f"\n{len(DOCUMENTS)} documents: engine {statistics.median(alone):.3f} s, over HTTP and Ray "
        f"Serve {statistics.median(over_http):.3f} s: {ratio:.2f} x"
    )
    assert ratio < 2


def test_a_rolling_redeployment_loses_no_request():
    seen = printed("serve_redeploy")
    print(f"\nredeployed under load: {seen}")
    assert set(seen) == {"200 before", "200 after"}
