"""Acceptance of the job's scale: a million pairs in flat memory, and as many a node on eight.

The model is a stand-in that takes a fixed time a pair. All nodes are this machine, so that its
cores bound what can be shown.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.__main__ import main as bench
from bench.job import workers
from bench.peers.usage import status_bytes
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.run.preparing import CHUNK_PAIRS
from tests.faults.sweep_place import ROOT, simulated
from tests.support.engine import TINY

NUM_DOCUMENTS, NUM_FILES, ROW_GROUP = 50, 8, 200
MAX_GROWTH = 0.10
MIN_EFFICIENCY = 0.9


def write_sets(folder: Path, num_pairs: int) -> int:
    """Candidate sets of short texts, a row group at a time; returns how many pairs they have."""
    folder.mkdir()
    candidate = pa.struct([("doc_id", pa.string()), ("doc", pa.string())])
    columns = [("query_id", pa.int64()), ("query", pa.string())]
    schema = pa.schema([*columns, ("candidates", pa.list_(candidate))])
    num_queries = num_pairs // NUM_DOCUMENTS
    bounds = [num_queries * file // NUM_FILES for file in range(NUM_FILES + 1)]
    for file, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        with pq.ParquetWriter(folder / f"{file}.parquet", schema) as writer:
            for start in range(low, high, ROW_GROUP):
                rows = [row(number) for number in range(start, min(start + ROW_GROUP, high))]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return num_queries * NUM_DOCUMENTS


def row(number: int) -> dict[str, object]:
    candidates = [
        {"doc_id": f"{number}-{place}", "doc": f"document {place} of query {number} and its words"}
        for place in range(NUM_DOCUMENTS)
    ]
    return {"query_id": number, "query": f"the words of query {number}", "candidates": candidates}


def start(folder: Path, pair_s: float, *options: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.faults.slow_job", f"{folder}/log", str(pair_s)]
    command += ["rerank", f"{folder}/sets", f"--output={folder}/out", f"--model={TINY}"]
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(
            [*command, "--threads=1", *options], cwd=ROOT, stdout=said, stderr=said
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """The share of the pairs that are written, and bytes: the driver's, the largest worker's."""

    share: float
    driver: int
    worker: int


def own_bytes(pid: int) -> int:
    """What a process holds without the pages of Ray's object store, which all map as they read."""
    return max(0, status_bytes(pid, "VmRSS") - status_bytes(pid, "RssShmem"))


def watched(job: "subprocess.Popen[bytes]", scores: Path, num_pairs: int) -> list[Sample]:
    """Once a second until the driver ends; the share is of rows in written files."""
    samples, known = [], {}
    while job.poll() is None:
        new = {path for path in scores.glob("*.parquet") if path not in known}
        known |= {path: pq.read_metadata(path).num_rows for path in new}
        worker = max(map(own_bytes, workers(job.pid)), default=0)
        samples.append(Sample(sum(known.values()) / num_pairs, own_bytes(job.pid), worker))
        time.sleep(1)
    return samples


def growth(samples: Sequence[Sample]) -> float:
    """From the first quarter's most to the whole job's, of driver or worker, the larger."""
    first = [sample for sample in samples if sample.share <= 0.25]
    return max(
        max(getattr(sample, name) for sample in samples)
        / max(getattr(sample, name) for sample in first)
        - 1
        for name in ("driver", "worker")
    )


@dataclass(frozen=True, slots=True)
class Call:
    began: float
    ended: float
    actor: int
    num_pairs: int


def calls_of(log: Path) -> list[Call]:
    lines = [line.split() for line in log.read_text().splitlines()]
    return [Call(float(line[0]), float(line[1]), *map(int, line[2:])) for line in lines]


def steady_rate(calls: Sequence[Call], num_actors: int) -> float:
    """Pairs a second from when the last actor has begun until the first one is done for good.

    A call that lies partly within counts by its share.
    """
    actors = {call.actor for call in calls}
    assert len(actors) == num_actors, "not every actor scored anything"
    start = max(min(call.began for call in calls if call.actor == actor) for actor in actors)
    stop = min(max(call.ended for call in calls if call.actor == actor) for actor in actors)
    assert stop > start, "some actors were done before others began"
    num_pairs = 0.0
    for call in calls:
        within = min(call.ended, stop) - max(call.began, start)
        num_pairs += call.num_pairs * max(0.0, within) / (call.ended - call.began)
    return num_pairs / (stop - start)


def measured_rate(folder: Path, num_nodes: int, chunk_s: float, seconds: float) -> float:
    """Pairs a second while all of the simulated nodes, of one GPU each, score."""
    folder.mkdir()
    num_pairs = write_sets(folder / "sets", round(seconds / chunk_s) * num_nodes * CHUNK_PAIRS)
    nodes = {f"gpu-{number}": {"num_cpus": 0, "num_gpus": 1} for number in range(num_nodes)}
    with simulated({"head": {"num_cpus": 4}} | nodes) as place:
        options = (f"--address={place.address}", f"--num-actors={num_nodes}")
        assert start(folder, chunk_s / CHUNK_PAIRS, *options).wait() == 0
    calls = calls_of(folder / "log")
    assert sum(call.num_pairs for call in calls) == num_pairs
    rate = steady_rate(calls, num_nodes)
    print(f"{num_nodes} nodes: {rate:,.0f} pairs/s while all score, {num_pairs:,} pairs")
    return rate


def test_growth_is_told_of_whoever_grew() -> None:
    sizes = [(0.1, 100, 50), (0.25, 110, 60), (0.6, 111, 90), (1.0, 109, 80)]
    assert growth([Sample(*size) for size in sizes]) == pytest.approx(0.5)


def test_steady_is_while_all_score_and_counts_calls_by_their_share() -> None:
    calls = [Call(0, 2, 1, 20), Call(2, 4, 1, 20), Call(1, 3, 2, 20), Call(4, 5, 2, 10)]
    assert steady_rate(calls, 2) == pytest.approx((10 + 20 + 20) / 3)
    with pytest.raises(AssertionError, match="not every actor"):
        steady_rate(calls, 3)


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_a_million_pairs_take_no_more_memory_than_a_quarter_of_them(tmp_path: Path) -> None:
    num_pairs = write_sets(tmp_path / "sets", 1_000_000)
    began = time.monotonic()
    job = start(tmp_path, 1e-4)
    samples = watched(job, tmp_path / "out" / "scores", num_pairs)
    assert job.returncode == 0, (tmp_path / "said").read_text()[-2_000:]
    seconds = time.monotonic() - began
    driver, worker = (max(getattr(each, n) for each in samples) >> 20 for n in ("driver", "worker"))
    print(
        f"{num_pairs:,} pairs in {seconds:.0f} s: driver {driver} MB, largest worker {worker} MB, "
        f"growth after the first quarter {growth(samples):.1%}"
    )
    assert verify_output(str(tmp_path / "out")).num_pairs == num_pairs
    assert growth(samples) <= MAX_GROWTH


@pytest.mark.faults
@pytest.mark.timeout(1_200)
def test_eight_nodes_score_as_many_pairs_a_node_as_one(tmp_path: Path) -> None:
    one, *others = (
        measured_rate(tmp_path / str(nodes), nodes, 1.5, 40) / nodes for nodes in (1, 2, 4, 8)
    )
    assert min(others) >= MIN_EFFICIENCY * one


@pytest.mark.faults
@pytest.mark.timeout(1_200)
def test_the_whole_job_gives_the_bare_engines_scores_in_flat_memory(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--preset", "tiny", "--scale", "0.3", "--rounds", "1", "--device", "cpu"]
    assert bench([*options, "--workloads", "job,memory", "--workdir", str(tmp_path)]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["job"]["max_score_difference"] < 1e-4 and report["faults"] == []
    assert max(report["memory"]["growth"].values()) <= 1 + MAX_GROWTH
