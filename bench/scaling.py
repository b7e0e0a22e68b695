"""`-m bench.scaling`: weak scaling of the job over simulated nodes of one GPU each.

The scorer sleeps a fixed time a pair, as a device would, and the work grows with the nodes; all
nodes are this machine, so that its cores bound what can be shown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.checkpoints import build
from bench.processes import ROOT
from bench.progress import Progress
from bench.scale import write_sets
from bench.stand_in import make_engine
from shardrank.actors.config import RerankerConfig
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.rerank import JobOptions, rerank
from shardrank.jobs.run.preparing import CHUNK_PAIRS

_HEAD_CPUS = 4
"""Logical: for preparing, whatever number of nodes."""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.run is not None:
        _run(options.run, options.chunk_s)
        return 0
    progress = Progress()
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as workdir:
        model = build("tiny", Path(workdir) / "model")
        for num_nodes in map(int, options.nodes.split(",")):
            progress(f"{num_nodes} nodes")
            figures.append(_measure(Path(workdir), model, num_nodes, options))
            one = figures[0]["pairs_per_s"] / figures[0]["nodes"]
            figures[-1]["efficiency"] = round(figures[-1]["pairs_per_s"] / num_nodes / one, 4)
    progress.clear()
    for each in figures:
        print(
            f"{each['nodes']} nodes: {each['pairs_per_s']:,.0f} pairs/s while all score "
            f"({each['steady_s']:.0f} s), efficiency {each['efficiency']:.3f}; "
            f"{each['pairs']:,} pairs in {each['seconds']:.0f} s with starting and ending"
        )
    print(json.dumps({"chunk_pairs": CHUNK_PAIRS, "chunk_s": options.chunk_s, "runs": figures}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    add = parser.add_argument
    add("--nodes", default="1,2,4,8", help="comma-separated, the first one is compared with")
    add("--seconds", type=float, default=40.0, help="of scoring for each node (%(default)s)")
    add(
        "--chunk-s",
        type=float,
        default=1.5,
        help=f"that {CHUNK_PAIRS} pairs take on a node (default: %(default)s)",
    )
    add("--run", help=argparse.SUPPRESS)
    return parser


def _measure(
    workdir: Path, model: Path, num_nodes: int, options: argparse.Namespace
) -> dict[str, Any]:
    directory = workdir / str(num_nodes)
    num_chunks = max(2, round(options.seconds / options.chunk_s)) * num_nodes
    num_pairs = write_sets(directory / "sets", num_chunks * CHUNK_PAIRS)
    job = {"directory": str(directory), "model": str(model), "nodes": num_nodes}
    command = [sys.executable, "-m", "bench.scaling", f"--chunk-s={options.chunk_s}"]
    done = subprocess.run(
        [*command, "--run", json.dumps(job)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2_000:])
    manifest = json.loads((directory / "out" / "manifest.json").read_text())
    calls = [Call.parse(line) for line in (directory / "log").read_text().splitlines()]
    assert sum(call.num_pairs for call in calls) == manifest["num_pairs"] == num_pairs
    rate, steady_s = steady(calls, num_nodes)
    return {
        "nodes": num_nodes,
        "pairs": num_pairs,
        "pairs_per_s": round(rate, 1),
        "steady_s": round(steady_s, 1),
        "seconds": manifest["seconds"],
    }


def _run(text: str, chunk_s: float) -> None:
    """The driver and its cluster, in a process of their own."""
    job = json.loads(text)
    directory = Path(job["directory"])
    import shardrank.cluster  # noqa: F401  its variables come before Ray's start

    # isort: split
    import ray
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": _HEAD_CPUS, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    for _ in range(job["nodes"]):
        cluster.add_node(num_cpus=0, num_gpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        config = RerankerConfig(model=job["model"], num_threads=1)
        options = JobOptions(
            str(directory / "out"), InputOptions(str(directory / "sets")), num_actors=job["nodes"]
        )
        rerank(options, config, make_engine(chunk_s / CHUNK_PAIRS, directory / "log"))
    finally:
        ray.shutdown()
        cluster.shutdown()


@dataclass(frozen=True, slots=True)
class Call:
    began: float
    ended: float
    actor: int
    num_pairs: int

    @classmethod
    def parse(cls, line: str) -> "Call":
        began, ended, actor, num_pairs = line.split()
        return cls(float(began), float(ended), int(actor), int(num_pairs))


def steady(calls: Sequence[Call], num_actors: int) -> tuple[float, float]:
    """Pairs a second from when the last actor has begun until the first one is done for good, and
    how many seconds that was. A call that lies partly within counts by its share.
    """
    actors = {call.actor for call in calls}
    if len(actors) != num_actors:
        raise SystemExit(f"{len(actors)} of {num_actors} actors scored anything")
    start = max(min(call.began for call in calls if call.actor == actor) for actor in actors)
    stop = min(max(call.ended for call in calls if call.actor == actor) for actor in actors)
    if stop <= start:
        raise SystemExit("too short: some actors were done before others began; raise --seconds")
    num_pairs = 0.0
    for call in calls:
        within = min(call.ended, stop) - max(call.began, start)
        num_pairs += call.num_pairs * max(0.0, within) / max(call.ended - call.began, 1e-9)
    return num_pairs / (stop - start), stop - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
