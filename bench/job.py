"""The whole job through Ray beside the bare engine, and its memory as the input grows.

Runs the command that users run, and reads what it says in its manifest.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.contenders import Contender, Peers
from bench.peers.usage import descendants, status_bytes
from bench.processes import ROOT, PeerFailed, last_line
from bench.progress import progress
from bench.results import Part
from bench.settings import MAX_SCORE_DIFFERENCE, OURS, BenchSettings
from bench.workloads import Drawing, Workload, build_workload

_NUM_SEEDS = 10  # the larger of the two memory jobs has so many times the pairs


def measure_job(drawing: Drawing, settings: BenchSettings, checkpoint: Path) -> Part:
    """Pairs a second of the job and of the bare engine on the second half of a text workload.

    The job runs on the first half and on the whole: the difference of the two times is free of
    Ray's and the model's start. Raises PeerFailed.
    """
    workload = build_workload("text", drawing)
    middle = len(workload.sets) // 2
    half, rest = (
        replace(workload, sets=workload.sets[part], places=workload.places[part])
        for part in (slice(middle), slice(middle, None))
    )
    engine_s: list[float] = []
    job_s: list[list[float]] = []
    for number in range(settings.rounds):
        progress(f"job: the bare engine, round {number + 1} of {settings.rounds}")
        with Peers(settings, checkpoint) as peers:
            engine = Contender(OURS, rest)
            engine.run(peers)
        if engine.failure is not None:
            raise PeerFailed(engine.failure)
        engine_s.append(engine.seconds)
        job_s.append([])
        for part in (half, workload):
            progress(f"job: {part.num_pairs} pairs, round {number + 1} of {settings.rounds}")
            output = settings.workdir / "job" / f"{number}-{part.num_pairs}"
            job_s[-1].append(_run_job(part, output, settings, checkpoint)["seconds"])
    slope = statistics.median_high(whole - first for first, whole in job_s)
    bare = statistics.median_high(engine_s)
    difference = _difference(output, middle, engine.runs[0]["result"])
    figures = {
        "pairs": rest.num_pairs,
        "engine_pairs_per_s": rest.num_pairs / bare,
        "job_pairs_per_s": rest.num_pairs / slope,
        "share_of_engine": bare / slope,
        "engine_seconds": engine_s,
        "job_seconds": job_s,
        "max_score_difference": difference,
    }
    text = "job: too short to tell its speed from its start, raise --scale\n"
    if slope > 0:
        text = (
            f"job: {rest.num_pairs:,} pairs, {figures['job_pairs_per_s']:,.2f} pairs/s through "
            f"Ray, {figures['engine_pairs_per_s']:,.2f} pairs/s by the bare engine: "
            f"{bare / slope:.0%} (start not counted), score diff {difference:.0e}\n"
        )
    is_wrong = settings.dtype == "float32" and not difference <= MAX_SCORE_DIFFERENCE
    wrong = [f"job: scores are {difference:.1e} off the bare engine's"] if is_wrong else []
    return figures, text, wrong


def measure_memory(drawing: Drawing, settings: BenchSettings, checkpoint: Path) -> Part:
    """Peak memory of the driver and of the largest worker, at n and at ten times n pairs."""
    parts = [build_workload("text", replace(drawing, seed=seed)).sets for seed in range(_NUM_SEEDS)]
    sizes = []
    for sets in (parts[0], sum(parts, [])):
        part = Workload("memory", sets, [])
        progress(f"memory: the job on {part.num_pairs} pairs")
        output = settings.workdir / "memory" / str(part.num_pairs)
        sizes.append({"pairs": part.num_pairs} | _run_job(part, output, settings, checkpoint))
    first, last = sizes
    growth = {name: last[name] / first[name] for name in ("driver_bytes", "worker_bytes")}
    lines = [
        f"memory: {size['pairs']:,} pairs: driver {size['driver_bytes'] / 2**20:,.0f} MB, "
        f"largest worker {size['worker_bytes'] / 2**20:,.0f} MB\n"
        for size in sizes
    ]
    return {"sizes": sizes, "growth": growth}, "".join(lines), []


def _run_job(
    workload: Workload, output: Path, settings: BenchSettings, checkpoint: Path
) -> dict[str, Any]:
    """`seconds` from the job's manifest, and peak memory. Raises PeerFailed."""
    shutil.rmtree(output, ignore_errors=True)  # of an earlier run: its input is written anew
    output.parent.mkdir(parents=True, exist_ok=True)
    parquet = output.with_suffix(".parquet")
    _write_parquet(workload, parquet)
    options = {
        "output": output,
        "model": checkpoint,
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "max-batch-tokens": settings.max_batch_tokens,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    command = [sys.executable, "-m", "shardrank.cli", "rerank", str(parquet), *given]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    log = output.with_suffix(".log")
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        try:
            memory = _watch(process)
        finally:
            process.terminate()  # where it is interrupted: Ray is stopped by its driver
            code = process.wait()
    if code != 0:
        raise PeerFailed(f"the job ended with code {code}: {last_line(log)}")
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    return {"seconds": manifest["seconds"]} | memory


def _watch(process: "subprocess.Popen[bytes]") -> dict[str, int]:
    """Peak memory of the driver and of the largest of Ray's workers, until the driver ends."""
    driver, worker = 0, 0
    while process.poll() is None:
        driver = max(driver, status_bytes(process.pid, "VmHWM"))
        worker = max(worker, *(status_bytes(pid, "VmHWM") for pid in workers(process.pid)), 0)
        time.sleep(0.2)
    return {"driver_bytes": driver, "worker_bytes": worker}


def workers(driver: int) -> list[int]:
    """Ray calls its workers `ray::` and what they do."""
    found = []
    for pid in descendants(driver):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                found.append(pid)
    return found


def _write_parquet(workload: Workload, path: Path) -> None:
    rows = [
        {
            "query_id": number,
            "query": one["query"]["text"],
            "candidates": [
                {"doc_id": index, "doc": document["text"]}
                for index, document in enumerate(one["documents"])
            ],
        }
        for number, one in enumerate(workload.sets)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) // 8))


def _difference(output: Path, first_query: int, expected: list[list[float]]) -> float:
    """The largest difference of a score; infinite where the job has none for a pair."""
    columns = ["query_id", "doc_id", "score"]
    table = pq.read_table(output / "scores", columns=columns).to_pylist()
    scores = {(row["query_id"], row["doc_id"]): row["score"] for row in table}
    return max(
        abs(scores.get((first_query + number, index), float("inf")) - score)
        for number, row in enumerate(expected)
        for index, score in enumerate(row)
    )
