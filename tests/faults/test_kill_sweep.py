"""Nothing is lost, whatever dies: SIGKILL at random moments of a job, SIGTERM and Ctrl-C too.

After each, the output is row for row that of an undisturbed run. The seed is printed; the same one
in SHARDRANK_SWEEP_SEED draws the same moments.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sweep
from sweep import Job, Place, Run, draw, make_job, simulated

from actors.preprocessor import Preprocessor
from actors.scorer import Scorer
from jobs.engine import Engine

SEED = int(os.environ.get("SHARDRANK_SWEEP_SEED") or random.SystemRandom().randrange(1 << 32))

NODES = {
    "head": {"num_cpus": 1},
    "gpu-a": {"num_cpus": 1, "num_gpus": 1},
    "gpu-b": {"num_cpus": 0, "num_gpus": 1},
    "cpu": {"num_cpus": 1},
}


def random_of(name: str) -> random.Random:
    print(f"SHARDRANK_SWEEP_SEED={SEED}")
    return random.Random(f"{SEED} {name}")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("sweep"), 60)


@pytest.fixture(scope="module")
def local(ray_address: str) -> Place:
    """The tests' own Ray, a child of this process."""
    return Place(ray_address, os.getpid())


def test_killed_workers_cost_nothing(tmp_path: Path, job: Job, local: Place) -> None:
    rng = random_of("workers")
    kinds = ["actor that scores", "worker that preprocesses", "worker that writes"]
    rng.shuffle(kinds)
    run = Run(job, local, tmp_path, rng)
    sweep.sweep(run, draw(rng, job.num_units, kinds))
    assert len(run.kills) == len(kinds)


def test_an_interrupted_and_a_killed_driver_go_on_where_they_stopped(
    tmp_path: Path, job: Job, local: Place
) -> None:
    rng = random_of("drivers")
    run = Run(job, local, tmp_path, rng)
    sweep.sweep(run, draw(rng, job.num_units, ["SIGTERM", "driver"]))
    assert len(run.kills) == 2


def test_a_killed_node_and_one_that_replaces_it(tmp_path: Path, job: Job) -> None:
    rng = random_of("nodes")
    with simulated(NODES) as cluster:
        run = Run(job, cluster, tmp_path, rng)
        sweep.sweep(run, [draw(rng, 60, ["GPU node"])[0], sweep.Point("joins", delay_s=4)])
    assert len(run.kills) == 1


# The long version


Kinds = tuple[str, ...]

JOINED: list[Kinds] = [
    *[("actor", "actor that scores")] * 5,
    *[("actor that scores", "worker that preprocesses")] * 3,
    *[("worker that reads", "worker that writes")] * 4,
    *[("worker that preprocesses", "worker that preprocesses", "worker that writes")] * 2,
    *[("worker that reads", "driver")] * 2,
    *[("attempt log", "actor that scores")] * 2,
    *[("worker that verifies",)] * 2,
    *[("driver", "driver")] * 4,
    *[("driver", "actor", "driver")] * 2,
    *[("SIGTERM", "SIGINT")] * 3,
    *[("GPU node", "joins")] * 3,
    *[("CPU node", "joins")] * 2,
    *[("all GPU nodes", "joins")] * 2,
    ("GPU node",),
    ("GPU node", "CPU node", "joins"),
    ("GPU node", "joins", "worker that preprocesses", "GPU node", "joins"),
    ("GPU node", "driver", "joins"),
]
EARLY: list[Kinds] = [
    *[("actor",)] * 2,
    ("worker that reads",),
    *[("driver", "driver")] * 3,
    *[("SIGTERM", "SIGINT")] * 2,
    ("GPU node", "joins"),
]
OWN: list[Kinds] = [("driver", "Ctrl-C"), ("SIGTERM", "driver"), ("Ctrl-C",)]
REAL: list[Kinds] = [("driver", "actor"), ("SIGTERM", "actor")]

LINES: list[dict[str, Any]] = []


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("sweep"), 120)


@pytest.fixture(scope="module")
def real_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("real"), 30, Engine(Preprocessor, Scorer))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Place]:
    with simulated(NODES) as place:
        yield place


@pytest.fixture
def whole(cluster: Place) -> Iterator[Place]:
    """Whatever a run before did to it."""
    assert cluster.cluster
    cluster.cluster.join_missing()
    yield cluster


def sweep_long(
    directory: Path, job: Job, place: Place, kinds: Kinds, name: str, by_delay: bool = False
) -> None:
    rng = random_of(name)
    run = Run(job, place, directory, rng)
    LINES.extend(sweep.sweep(run, draw(rng, job.num_units, kinds, by_delay)))


def named(runs: list[Kinds]) -> Any:
    """Each with a name that its moments are drawn from."""
    return pytest.mark.parametrize(
        ("index", "kinds"), list(enumerate(runs)), ids=[", ".join(kinds) for kinds in runs]
    )


@pytest.mark.faults
@named(JOINED)
def test_sweep(tmp_path: Path, long_job: Job, whole: Place, index: int, kinds: Kinds) -> None:
    sweep_long(tmp_path, long_job, whole, kinds, f"joined {index}")


@pytest.mark.faults
@named(EARLY)
def test_sweep_early(tmp_path: Path, long_job: Job, whole: Place, index: int, kinds: Kinds) -> None:
    """By seconds: while the driver plans, joins and starts its actors too."""
    sweep_long(tmp_path, long_job, whole, kinds, f"early {index}", by_delay=True)


@pytest.mark.faults
@named(OWN)
def test_sweep_own_ray(tmp_path: Path, long_job: Job, index: int, kinds: Kinds) -> None:
    sweep_long(tmp_path, long_job, Place(), kinds, f"own {index}")


@pytest.mark.faults
@named(REAL)
def test_sweep_real_model(
    tmp_path: Path, real_job: Job, whole: Place, index: int, kinds: Kinds
) -> None:
    sweep_long(tmp_path, real_job, whole, kinds, f"real {index}")


@pytest.mark.faults
def test_the_long_sweep_was_long() -> None:
    summary = {
        "seed": SEED,
        "kills": len(LINES),
        "by_kind": Counter(line["kill"] for line in LINES),
        "max_redone": max((line["redone"] for line in LINES), default=None),
        "max_rescored_of_all": max((line["rescored_of_all"] for line in LINES), default=None),
        "max_ended_s": max((line.get("ended_s", 0) for line in LINES), default=None),
    }
    print(json.dumps(summary))
    assert len(LINES) >= 50
