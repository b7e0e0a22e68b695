"""A simulated Ray cluster in a process of its own: `sweep_cluster NODES`, a JSON object of
name -> Cluster.add_node's arguments, the head first. Says its address, then obeys `kill NAME`
and `add NAME` on stdin, a line for a line. It ends, and every node with it, when stdin does.
"""

import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from typing import Any

MEMORY = 100 << 20


def main(nodes: dict[str, dict[str, Any]]) -> None:
    from ray.cluster_utils import Cluster

    head, *others = nodes
    options = {"include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=options | nodes[head])
    alive = {name: cluster.add_node(**options | nodes[name]) for name in others}
    raylets = {name: _raylet(node) for name, node in alive.items()} | {
        head: _raylet(cluster.head_node)
    }
    _say({"address": cluster.address, "raylets": raylets})
    for line in sys.stdin:
        order, name = line.split()
        if order == "add":
            alive[name] = cluster.add_node(**options | nodes[name])
            _say({"raylet": _raylet(alive[name])})
        else:
            _kill_all(cluster, alive.pop(name))
            _say({})
    cluster.shutdown()


def _kill_all(cluster: Any, node: Any) -> None:
    """As if its power went: the workers do not outlive the raylet."""
    raylet = _raylet(node)
    for pid in [raylet, *descendants(raylet)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with suppress(ValueError, OSError, IndexError):
            child = int(name)
            with open(f"/proc/{child}/stat") as stream:
                parent = int(stream.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(child)
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as path:
        os.environ["RAY_TMPDIR"] = path  # also of the file that names the last cluster started
        os.makedirs(os.path.join(path, "ray"))
        main(json.loads(sys.argv[1]))
