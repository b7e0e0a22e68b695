"""Nothing is lost, whatever dies: SIGKILL at random moments of a job, SIGTERM and Ctrl-C too.

After each, the output is row for row that of an undisturbed run. The seed is printed; the same one
in SHARDRANK_SWEEP_SEED draws the same moments.
"""

import json
import os
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.scorer import Scorer
from shardrank.jobs.run.engine import Engine
from tests.faults import sweep
from tests.faults.sweep import Run, draw
from tests.faults.sweep_job import Job, Store, make_document_job, make_job, on_store
from tests.faults.sweep_place import Place, simulated

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
def document_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_document_job(tmp_path_factory.mktemp("documents"), 30)


@pytest.fixture(scope="module")
def small_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("small"), 14)


@pytest.fixture(scope="module")
def store(s3_endpoint: str) -> Store:
    """A place of this module's own."""
    netloc = s3_endpoint.removeprefix("http://")
    query = f"?scheme=http&region=us-east-1&endpoint_override={netloc}"
    return Store(f"s3://bucket/sweep-{uuid.uuid4().hex[:8]}", query)


@pytest.fixture(scope="module")
def local(ray_address: str) -> Place:
    """The tests' own Ray, a child of this process."""
    return Place(ray_address, os.getpid())


def test_killed_workers_cost_nothing(tmp_path: Path, job: Job, local: Place) -> None:
    rng = random_of("workers")
    kinds = ["actor that scores", "worker that preprocesses", "worker that writes"]
    rng.shuffle(kinds)
    run = Run(job, local, tmp_path, rng)
    sweep.sweep(run, draw(rng, job, kinds))
    assert len(run.kills) == len(kinds)


def test_an_interrupted_and_a_killed_driver_go_on_where_they_stopped(
    tmp_path: Path, job: Job, local: Place
) -> None:
    rng = random_of("drivers")
    run = Run(job, local, tmp_path, rng)
    sweep.sweep(run, draw(rng, job, ["SIGTERM", "driver"]))
    assert len(run.kills) == 2


def test_a_document_major_job_keeps_its_parts_and_its_score_files(
    tmp_path: Path, document_job: Job, local: Place
) -> None:
    rng = random_of("documents")
    kinds = [
        rng.choice(["actor that scores", "worker that preprocesses", "worker that writes"]),
        "worker that regroups",
        "driver while regrouping",
    ]
    run = Run(document_job, local, tmp_path, rng)
    sweep.sweep(run, draw(rng, document_job, kinds))
    assert [kill.point.kind for kill in run.kills] == kinds
    for kill in run.kills[1:]:
        assert len(document_job.parts) <= len(kill.finished) < document_job.num_files


def test_a_job_between_places_on_an_object_store(
    tmp_path: Path, small_job: Job, local: Place, store: Store
) -> None:
    rng = random_of("object store")
    job = on_store(small_job, store)
    run = Run(job, local, tmp_path, rng, store)
    sweep.sweep(run, draw(rng, job, ["worker that writes", "driver"]))
    assert len(run.kills) == 2


def test_a_killed_node_and_one_that_replaces_it(tmp_path: Path, job: Job) -> None:
    rng = random_of("nodes")
    with simulated(NODES) as cluster:
        run = Run(job, cluster, tmp_path, rng)
        sweep.sweep(run, [draw(rng, job, ["GPU node"])[0], sweep.Point("joins", delay_s=4)])
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
DOCUMENTS: list[Kinds] = [
    ("actor that scores", "worker that preprocesses", "worker that writes"),
    ("worker that writes", "worker that regroups"),
    *[("worker that regroups", "worker that regroups", "worker that regroups")] * 2,
    ("driver", "driver while regrouping"),
    ("driver while regrouping", "driver while regrouping"),
    ("SIGTERM", "SIGTERM while regrouping"),
    ("GPU node", "joins", "worker that regroups"),
    ("CPU node", "driver while regrouping", "joins"),
]
STORED: list[Kinds] = [
    ("actor that scores", "worker that writes", "worker that writes"),
    ("driver", "worker that writes", "driver"),
    ("SIGTERM", "driver"),
    ("worker that preprocesses", "SIGINT", "worker that verifies"),
]
STORED_DOCUMENTS: list[Kinds] = [
    ("worker that writes", "driver while regrouping"),
    ("driver", "worker that regroups", "SIGTERM while regrouping"),
]

LINES: list[dict[str, Any]] = []


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("sweep"), 120)


@pytest.fixture(scope="module")
def long_document_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_document_job(tmp_path_factory.mktemp("documents"), 60)


@pytest.fixture(scope="module")
def stored_job(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Job:
    return on_store(make_job(tmp_path_factory.mktemp("stored"), 30), store)


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
    directory: Path,
    job: Job,
    place: Place,
    kinds: Kinds,
    name: str,
    by_delay: bool = False,
    store: Store | None = None,
) -> None:
    rng = random_of(name)
    run = Run(job, place, directory, rng, store)
    LINES.extend(sweep.sweep(run, draw(rng, job, kinds, by_delay)))


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
@named(DOCUMENTS)
def test_sweep_document_major(
    tmp_path: Path, long_document_job: Job, whole: Place, index: int, kinds: Kinds
) -> None:
    sweep_long(tmp_path, long_document_job, whole, kinds, f"documents {index}")


@pytest.mark.faults
@pytest.mark.timeout(600)
@named(STORED)
def test_sweep_object_store(
    tmp_path: Path, stored_job: Job, whole: Place, store: Store, index: int, kinds: Kinds
) -> None:
    sweep_long(tmp_path, stored_job, whole, kinds, f"stored {index}", store=store)


@pytest.mark.faults
@pytest.mark.timeout(600)
@named(STORED_DOCUMENTS)
def test_sweep_document_major_object_store(
    tmp_path: Path, document_job: Job, whole: Place, store: Store, index: int, kinds: Kinds
) -> None:
    sweep_long(tmp_path, document_job, whole, kinds, f"both {index}", store=store)


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
    assert len(LINES) >= 75
