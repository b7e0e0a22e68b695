"""`serve deploy` of serve/config.yaml, and its end, with a request in work, on a Ray of its own:
`python -m tests.support.serve_deployed PORT`.

Prints one JSON object: what the request in work got, what came after it, and how many directories
of metrics there were before and after.
"""

import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx
import yaml

from shardrank.serve.proxy import CALLBACK, CALLBACK_VARIABLE
from tests.support.serve_app import TINY

CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"
WORK = {"query": "q", "documents": ["some words " * 100] * 3_000, "return_documents": False}
REQUEST = {"query": "q", "documents": ["a"]}


def config(port: int) -> dict[str, Any]:
    """The product's own, for the tiny model on a CPU, open on loopback."""
    found = yaml.safe_load(CONFIG.read_text("utf-8"))
    found["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = found["applications"]
    application["args"] |= {"model": str(TINY), "device": "cpu", "threads": 1, "is_open": True}
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 1}
    del deployment["autoscaling_config"]
    return found


def main(port: int) -> None:
    os.environ[CALLBACK_VARIABLE] = CALLBACK
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    node = ray.get_runtime_context().get_node_id()
    deployed = ServeDeploySchema.model_validate(config(port))
    serve.start(http_options=deployed.http_options.model_dump())
    client = _get_global_client()
    client.deploy_apps(deployed)  # as Ray's agent does for `serve deploy`
    url = f"http://127.0.0.1:{port}"
    until(url, 200)
    metrics = [*Path(tempfile.gettempdir()).glob(f"shardrank-metrics-{node}-shardrank")]
    in_work: list[int] = []
    thread = threading.Thread(target=lambda: in_work.append(post(url, WORK).status_code))
    thread.start()
    while "shardrank_queue_pairs 0.0" in httpx.get(f"{url}/metrics", timeout=90).text:
        threading.Event().wait(0.05)
    client.deploy_apps(ServeDeploySchema(applications=[]))
    refused = [until(url, 503), post(url, REQUEST)]
    was_in_work = not in_work
    thread.join()
    serve.delete("shardrank")  # which waits for its end
    found = {
        "was_in_work": was_in_work,
        "in_work": in_work,
        "refused": [(answer.status_code, answer.headers.get("retry-after")) for answer in refused],
        "metrics": [len(metrics), sum(path.exists() for path in metrics)],
    }
    serve.shutdown()
    ray.shutdown()
    print(json.dumps(found))


def post(url: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v2/rerank", json=body, timeout=90)


def until(url: str, status: int) -> httpx.Response:
    while (answer := httpx.get(f"{url}/ready", timeout=90)).status_code != status:
        threading.Event().wait(0.05)
    return answer


if __name__ == "__main__":
    main(int(sys.argv[1]))
