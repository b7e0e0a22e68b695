"""An input that grew, and a driver that is killed while what is new is scored."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.verify import verify_output
from tests.faults import sweep_engine
from tests.faults.sweep_place import ROOT
from tests.support.engine import TINY
from tests.support.job_cases import plan_of, run_inline, score_rows, write_table

NUM_OLD, NUM_NEW = 16, 10
"""Documents of a query before and after."""


def write_run(folder: Path, name: str, pairs: list[tuple[int, int]]) -> None:
    rows = [{"query_id": i, "doc_id": f"d{j}", "rank": j + 1} for i, j in pairs]
    write_table(folder / "run" / f"{name}.parquet", rows)


def options(folder: Path) -> InputOptions:
    places = (str(folder / name) for name in ("run", "queries.parquet", "corpus.parquet"))
    return InputOptions(None, *places)


def start(folder: Path, address: str, *more: str) -> "subprocess.Popen[bytes]":
    job = options(folder)
    tables = [f"--{name}={getattr(job, name)}" for name in ("run", "queries", "corpus")]
    fixed = (f"--output={folder}/out", f"--model={TINY}", "--threads=1", "--unit-pairs=64")
    command = [sys.executable, "-m", "tests.faults.sweep_driver", str(folder / "log"), "rerank"]
    with (folder / "said").open("ab") as said:
        arguments = [*command, *tables, *fixed, f"--address={address}", *more]
        return subprocess.Popen(arguments, cwd=ROOT, stdout=said, stderr=said)


def scored(folder: Path) -> list[tuple[str, str]]:
    """The first pair of each piece that was scored."""
    lines = [line.split("\t") for line in (folder / "log").read_text().splitlines()]
    return [(line[3], line[4]) for line in lines if line[2] == "scored"]


@pytest.mark.parametrize("order", ["query", pytest.param("document", marks=pytest.mark.faults)])
def test_what_was_scored_before_is_not_scored_again_when_the_driver_is_killed(
    tmp_path: Path, ray_address: str, order: Any
) -> None:
    queries = [{"query_id": i, "text": f"query {i}"} for i in range(24)]
    documents = [{"doc_id": f"d{j}", "text": f"document {j}"} for j in range(NUM_OLD + NUM_NEW)]
    write_table(tmp_path / "queries.parquet", queries)
    write_table(tmp_path / "corpus.parquet", documents)
    write_run(tmp_path, "b", [(i, j) for i in range(20) for j in range(NUM_OLD)])
    assert start(tmp_path, ray_address, f"--order={order}").wait(120) == 0
    (tmp_path / "log").unlink()
    new = [(i, j) for i in range(24) for j in range(NUM_OLD, NUM_OLD + NUM_NEW)]
    write_run(tmp_path, "a", new)
    grown = start(tmp_path, ray_address, "--add-new")
    deadline = time.monotonic() + 120
    while not (tmp_path / "log").exists() or len(scored(tmp_path)) < 5:
        assert grown.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    grown.kill()
    grown.wait()
    assert start(tmp_path, ray_address, "--add-new").wait(120) == 0
    texts = {(f"query {i}", f"document {j}") for i, j in new}
    assert set(scored(tmp_path)) <= texts
    run_inline(
        plan_of(options(tmp_path), 64),
        tmp_path / "undisturbed",
        engine=sweep_engine.make_engine(None),
    )
    rows, expected = (
        {(row["query_id"], row["doc_id"]): row for row in score_rows(tmp_path / name)}
        for name in ("out", "undisturbed")
    )
    assert rows == expected
    assert verify_output(str(tmp_path / "out")).num_pairs == 20 * NUM_OLD + len(new)
    assert os.path.exists(tmp_path / "out" / "_SUCCESS")
