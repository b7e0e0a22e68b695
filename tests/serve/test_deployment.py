"""The endpoint on a real Ray Serve, by its own command: replicas lost, stopped, configured."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from shardrank.actors.reranker import Reranker
from shardrank.serve.deployment import AppArguments, app
from shardrank.serve.gate.keys import ApiKeys
from tests.support.listening import LOOPBACK, listening, processes
from tests.support.serve_app import TINY

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text("utf-8"))
REQUEST = {"query": "Which planet is red?", "documents": ["Mars is red.", "Bananas are yellow."]}
KEY = "sr-a-key-that-is-long-enough"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(log: Path, *options: str) -> Iterator[tuple[httpx.Client, subprocess.Popen]]:
    """`shardrank serve` on a port of its own, ready, with a client of it."""
    port = free_port()
    arguments = [sys.executable, "-m", "shardrank.cli", "serve", "--port", str(port), *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=os.environ | {"HOME": str(log.parent)},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:
            await_ready(client, process, log)
            yield client, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text("utf-8", "replace")


def await_ready(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        with suppress(httpx.TransportError):
            if client.get("/ready").status_code == 200:
                return
        assert process.poll() is None, log.read_text("utf-8", "replace")
        time.sleep(0.5)
    raise AssertionError(log.read_text("utf-8", "replace"))


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """`shardrank serve` that does not serve."""
    return subprocess.run(
        [sys.executable, "-m", "shardrank.cli", "serve", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )


def printed(module: str) -> Any:
    """The JSON at the end of what a program of tests/support prints, with a port of its own."""
    command = [sys.executable, "-m", f"tests.support.{module}", str(free_port())]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def shared_folders(parent: int) -> list[Path]:
    """Those that are open in a server's command."""
    places = (Path(os.readlink(path)) for path in Path(f"/proc/{parent}/fd").iterdir())
    return sorted({place.parent for place in places if place.name == "console"})


LOGGED = r"[-:\dTZ]{{20}} {} {} {} \d+ ms request_id={} documents={} tokens={}"


def spoken(text: str) -> tuple[list[str], list[str]]:
    """What the command said, and its access log; not what Ray says of replicas that were killed."""
    lines = [line for line in text.splitlines() if "(raylet)" not in line]
    logged = [line for line in lines if "request_id=" in line]
    return [line for line in lines if line not in logged], logged


def replicas(parent: int) -> list[int]:
    """Process ids of the replicas of a Ray that `parent` started."""
    titles = processes(parent).items()
    return [int(path.name) for path, title in titles if title.startswith(b"ray::ServeReplica")]


@pytest.mark.timeout(600)
def test_a_lost_replica_costs_what_it_worked_on_and_the_command_stops_in_order(tmp_path):
    """One server for several claims: starting one takes half a minute."""
    options = ["--model", str(TINY), "--threads", "1", "--device", "cpu", "--num-replicas", "2"]
    with served(tmp_path / "log", *options) as (client, process):
        answer = client.post("/v2/rerank", json=REQUEST, headers={"X-Request-Id": "mine"})
        expected = Reranker(str(TINY), device="cpu", num_threads=1).score(*REQUEST.values())
        results = sorted(answer.json()["results"], key=lambda result: result["index"])
        assert [r["relevance_score"] for r in results] == pytest.approx(expected, abs=1e-5)
        assert answer.headers.get_list("x-request-id") == ["mine"]
        assert client.get("/health").json() == {"status": "ok"}
        head = httpx.head(f"{client.base_url}//v1/models/")  # Serve's proxy passes both on
        assert head.status_code == 200 and head.content == b""

        ports = listening(process.pid)
        assert set(ports) <= LOOPBACK and ports.total() > 5, ports
        titles = b" ".join(processes(process.pid).values()).decode()
        temporary = re.search(r"--temp[-_]dir=(\S+/ray-\S+)/r\b", titles.replace("\0", " "))
        assert temporary, titles
        private = [tmp_path / ".ray" / "auth_token", Path(temporary[1])]
        assert [each.stat().st_mode & 0o077 for each in private] == [0, 0]

        statuses = Counter(under_kills(client.base_url, process, num_kills=2))
        refused = set(statuses) - {200, 429, 500, 503}
        assert not refused and statuses[200] > 0, statuses
        assert statuses[500] <= 2 * 4, statuses  # who was in work when one of the two died
        assert "shardrank_pairs_total" in client.get("/metrics").text

        port = str(client.base_url.port)
        second = command("--port", port, *options)
        assert second.returncode == 1
        assert (
            second.stderr
            == f"error: port {port} of 127.0.0.1 is in use: choose another one " + ("with --port\n")
        )
        (shared,) = shared_folders(process.pid)
        assert shared.stat().st_mode & 0o777 == 0o700 and list(shared.glob("metrics/*.db"))
        assert interrupted(client, process) == (200, [(503, "2"), (503, "2")])
        assert process.wait(timeout=60) == 0 and not shared.exists()
    said, logged = spoken((tmp_path / "log").read_text())
    loaded = "a replica has loaded the model"
    beginnings = ["starting Ray", "loading /", loaded, loaded, "serving tiny at http://127.0.0.1:"]
    beginnings += [loaded] * (len(said) - 6) + ["stopping: requests in work"]  # lost ones again
    assert all(map(str.startswith, said, beginnings)), said
    (mine,) = [line for line in logged if "request_id=mine" in line]
    assert re.fullmatch(LOGGED.format("POST", "/v2/rerank", 200, "mine", 2, r"[1-9]\d+"), mine)
    assert any(" GET /ready 503 " in line for line in logged)


def under_kills(url: httpx.URL, process: subprocess.Popen, num_kills: int) -> list[int]:
    """Statuses of requests that run while replicas are killed; 503 must say when to come back, and
    who may have been the cause is not told to.
    """
    statuses: list[int] = []
    stopped = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=90) as client:
            while not stopped.is_set():
                answer = client.post("/v2/rerank", json=REQUEST | {"documents": ["a"] * 50})
                if answer.status_code == 500:
                    assert answer.json()["error"]["code"] == "replica_lost"
                    assert "retry-after" not in answer.headers
                elif answer.status_code != 200:
                    assert int(answer.headers["retry-after"]) >= 1
                statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(num_kills):
        time.sleep(2)
        alive = replicas(process.pid)
        assert alive
        os.kill(alive[0], signal.SIGKILL)
    time.sleep(5)
    stopped.set()
    for thread in threads:
        thread.join()
    return statuses


def interrupted(client: httpx.Client, process: subprocess.Popen) -> tuple[int, list[Any]]:
    """The status of a request in work as the terminal's Ctrl-C comes; what is told to others."""
    in_work: list[int] = []
    body = {"query": "q", "documents": ["some words " * 100] * 3_000, "return_documents": False}
    thread = threading.Thread(
        target=lambda: in_work.append(client.post("/v2/rerank", json=body).status_code)
    )
    thread.start()
    while "shardrank_queue_pairs 0.0" in client.get("/metrics").text:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    while (ready := client.get("/ready")).status_code == 200:
        time.sleep(0.05)
    refused = [ready, client.post("/v2/rerank", json=REQUEST)]
    assert not in_work
    thread.join()
    return in_work[0], [(answer.status_code, answer.headers["retry-after"]) for answer in refused]


@pytest.mark.timeout(500)
def test_an_application_that_is_deployed_ends_in_order():
    assert printed("serve_deployed") == {
        "was_in_work": True,
        "in_work": [200],
        "refused": [[503, "2"], [503, "2"]],
        "metrics": [1, 0],
    }


def test_a_model_that_does_not_load_ends_the_command_with_its_cause(tmp_path):
    for path in TINY.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    process = command("--model", str(tmp_path), "--port", str(free_port()))
    assert process.returncode == 1
    assert "the endpoint did not start: ValueError" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "key"),
        (["--model", "/nowhere"], "neither a directory nor a hub name"),
        (["--max-length", "0"], "max_length must be above zero"),
        (["--max-documents", "0"], "max_documents must be at least 1"),
        (["--keys-file", "/nonexistent.toml"], "/nonexistent.toml"),
        (["--allow-network", "here"], "here"),
    ],
)
def test_a_wrong_command_is_one_sentence(options, sentence, capsys, monkeypatch):
    from shardrank.cli import main

    monkeypatch.delenv("SHARDRANK_API_KEYS", raising=False)
    assert main(["serve", "--port", str(free_port()), *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_no_process_of_ray_is_given_the_keys_themselves(monkeypatch):
    from shardrank.cli import main

    given: dict[str, str] = {}

    def connected(address: str | None) -> None:
        given.update(os.environ)
        raise ConnectionError("that is enough")

    monkeypatch.setattr(os, "environ", {**os.environ, "SHARDRANK_API_KEYS": KEY})
    monkeypatch.setattr("shardrank.cluster.connected", connected)
    assert main(["serve", "--model", str(TINY), "--port", str(free_port())]) == 1
    assert given and KEY not in str(given)


def test_the_configuration_has_only_names_that_serve_knows():
    """Serve itself lets a misspelled deployment key pass."""
    ServeDeploySchema.model_validate(CONFIG)
    for deployment in CONFIG["applications"][0]["deployments"]:
        assert set(deployment) <= set(DeploymentSchema.model_fields)
    arguments = CONFIG["applications"][0]["args"] | {"cors_origins": ["https://app.test"]}
    settings = AppArguments.model_validate(arguments).settings(None)
    assert settings.cors_origins == ("https://app.test",)


def test_an_application_without_keys_must_say_that_it_is_open(monkeypatch):
    monkeypatch.delenv("SHARDRANK_API_KEYS", raising=False)
    with pytest.raises(ValueError, match="no API keys"):
        app(AppArguments(model=str(TINY)))
    monkeypatch.setenv("SHARDRANK_API_KEYS", KEY)
    assert app(AppArguments(model=str(TINY)))


def test_a_new_key_is_shown_once_and_its_hash_fits_the_file(capsys, tmp_path):
    from shardrank.cli import main

    assert main(["new-key", "alice"]) == 0
    shown = capsys.readouterr()
    (tmp_path / "keys.toml").write_text(shown.err)
    keys = ApiKeys.of(tmp_path / "keys.toml", ())
    assert keys.check({"authorization": f"Bearer {shown.out.strip()}"}).name == "alice"
    assert shown.out.strip() not in shown.err
