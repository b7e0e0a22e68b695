"""The scoring actors that fit a cluster: how many, and what each has of it. Knows no Ray."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardrank.jobs.errors import UsageError
from shardrank.jobs.run.progress import counted


@dataclass(frozen=True, slots=True)
class Pool:
    """The scoring actors; `num_cpus` and `num_gpus` are of one actor."""

    num_actors: int
    num_cpus: float
    num_gpus: float

    def __str__(self) -> str:
        actors = counted(self.num_actors, "scoring actor")
        return f"{actors} on {'GPU' if self.num_gpus else 'CPU'}"


def choose_pool(
    nodes: Sequence[Mapping[str, float]],
    device: str,
    num_actors: int | None,
    *,
    can_grow: bool = True,
) -> Pool:
    """One actor a GPU, or on a cluster without any, one on a CPU. nodes: the resources of each.

    A CUDA pool larger than the cluster waits for its autoscaler, if it can grow. Raises UsageError
    otherwise.
    """
    cpus, gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    if device.startswith("cuda") or (device == "auto" and gpus):
        if not gpus and not num_actors:
            raise UsageError(
                "the cluster has no GPU; with an autoscaler say how many with --num-actors"
            )
        count = num_actors or gpus
        if count > gpus and not can_grow:
            raise UsageError(
                f"too few GPUs: {counted(count, 'scoring actor')} need as many, this "
                f"machine has {gpus}; lower --num-actors, or join a cluster with --address"
            )
        return _checked(Pool(count, _cpus_beside_a_gpu(nodes, cpus, count), num_gpus=1), cpus)
    return _checked(Pool(num_actors or 1, num_cpus=1, num_gpus=0), cpus)


def _cpus_beside_a_gpu(nodes: Sequence[Mapping[str, float]], cpus: int, num_actors: int) -> float:
    """A core of its own, to pack and to launch while the others prepare; none where a node could
    then not take an actor for each of its GPUs and a task.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0)]
    fits = all(node.get("CPU", 0) > node["GPU"] for node in with_gpus)
    return 1 if with_gpus and fits and cpus > num_actors else 0


def settled_dtype(dtype: str, pool: Pool) -> str:
    """What the pool's actors make of it, as actors/model/device.py has it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if pool.num_gpus else "float32"


def _checked(pool: Pool, cpus: int) -> Pool:
    """Ray would wait without end for CPUs that the pool itself holds."""
    needed = int(pool.num_actors * pool.num_cpus) + 1
    if cpus < needed:
        raise UsageError(
            f"too few CPUs: {pool.num_actors} scoring actors and one reading task need {needed}, "
            f"the cluster has {cpus}; lower --num-actors or add CPUs"
        )
    return pool


def fair_threads(pool: Pool) -> int:
    """This node's cores over the actors, as if all were here; Ray itself would leave one."""
    return max(1, (os.cpu_count() or 1) // pool.num_actors)
