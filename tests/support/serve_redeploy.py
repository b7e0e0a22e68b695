"""A redeployment under load, on a Ray of its own: `python -m tests.support.serve_redeploy PORT`.

Prints one JSON object: how often each status came, and the models' names in the answers.
"""

import json
import os
import sys
import threading
from collections import Counter

import httpx

from shardrank.serve.proxy import CALLBACK, CALLBACK_VARIABLE
from tests.support.serve_app import settings

REQUEST = {"query": "Which planet is red?", "documents": ["Mars is red.", "Bananas."] * 10}


def main(port: int) -> None:
    os.environ[CALLBACK_VARIABLE] = CALLBACK
    import ray
    from ray import serve

    from shardrank.serve.deployment import APP_NAME, application

    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(settings(served_name="before"), num_replicas=2), name=APP_NAME)
    seen: Counter[str] = Counter()
    stopped = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=90) as client:
            while not stopped.is_set():
                try:
                    answer = client.post(f"http://127.0.0.1:{port}/v2/rerank", json=REQUEST)
                except httpx.TransportError as error:
                    seen[type(error).__name__] += 1
                    continue
                seen[f"{answer.status_code} {answer.json().get('model')}"] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    stopped.wait(5)
    serve.run(application(settings(served_name="after"), num_replicas=2), name=APP_NAME)
    stopped.wait(5)
    stopped.set()
    for thread in threads:
        thread.join()
    serve.shutdown()
    ray.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]))
