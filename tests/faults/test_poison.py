"""Inputs that kill, hang or break the process that works on them, in a real job on a local Ray."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.jobs.errors import JobError, TooManyErrors, UnitsFailed, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.budget import MaxErrors
from shardrank.jobs.rerank import JobOptions, Summary, rerank
from tests.faults import poison
from tests.faults.sweep_place import ROOT, simulated
from tests.support.job_cases import (
    candidate,
    query_row,
    score_rows,
    text,
    text_rows,
    write_sets,
    write_table,
)

TINY = Path(__file__).parent.parent / "golden" / "tiny"
CONFIG = RerankerConfig(model=str(TINY), num_threads=1)

pytestmark = pytest.mark.usefixtures("ray_address")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


def run(
    input: str | InputOptions,
    output: Path,
    log: Path,
    config: RerankerConfig = CONFIG,
    **options: Any,
) -> Summary:
    import ray

    ray.cloudpickle.register_pickle_by_value(poison)
    job_input = input if isinstance(input, InputOptions) else InputOptions(input)
    options = {"unit_pairs": 40, "pair_timeout_s": 4.0} | options
    return rerank(JobOptions(str(output), job_input, **options), config, poison.engine(log))


def poisoned(rows: list[dict[str, Any]], texts: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    """(query, document) -> its text; document -1 is the query itself."""
    for (query, document), value in texts.items():
        if document < 0:
            rows[query]["query"] = value
        else:
            rows[query]["candidates"][document]["doc"] = text(value)
    return rows


def codes(output: Path) -> dict[tuple[Any, Any], str]:
    rows = score_rows(output)
    return {(r["query_id"], r["doc_id"]): r["error_code"] for r in rows if r["error_code"]}


def scores(output: Path) -> dict[tuple[Any, Any], float]:
    return {(r["query_id"], r["doc_id"]): r["logit"] for r in score_rows(output)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> dict:
    path = tmp_path_factory.mktemp("undisturbed")
    log = path / "log"
    log.touch()
    run(write_sets(path / "sets.parquet", text_rows(16, 10), 4), path / "out", log)
    return scores(path / "out")


def assert_others_are_as_undisturbed(output: Path, undisturbed: dict) -> None:
    found, failed = scores(output), codes(output)
    assert found.keys() == undisturbed.keys()
    assert {pair: found[pair] for pair in found if pair not in failed} == {
        pair: score for pair, score in undisturbed.items() if pair not in failed
    }


def test_a_row_that_kills_or_hangs_its_process_is_that_rows_error(
    tmp_path: Path, log: Path, undisturbed: dict
) -> None:
    texts = {
        (1, 3): "prepare:segfault",
        (6, 0): "prepare:hang",
        (6, 9): "prepare:raise",
        (9, 5): "score:kill",
        (13, 2): "score:raise",
    }
    sets = write_sets(tmp_path / "sets.parquet", poisoned(text_rows(16, 10), texts), 4)
    run(sets, tmp_path / "out", log)
    assert codes(tmp_path / "out") == {
        (1, "d3"): "crashed",
        (6, "d0"): "timed_out",
        (6, "d9"): "unexpected",
        (9, "d5"): "crashed",
        (13, "d2"): "unexpected",
    }
    assert_others_are_as_undisturbed(tmp_path / "out", undisturbed)


def test_a_query_that_kills_is_the_error_of_all_its_pairs_after_three_deaths(
    tmp_path: Path, log: Path, undisturbed: dict
) -> None:
    rows = poisoned(text_rows(16, 10), {(5, -1): "prepare:kill"})
    run(write_sets(tmp_path / "sets.parquet", rows, 4), tmp_path / "out", log)
    assert codes(tmp_path / "out") == {(5, f"d{i}"): "crashed" for i in range(10)}
    assert_others_are_as_undisturbed(tmp_path / "out", undisturbed)
    assert log.read_text().count("read prepare:kill") == 3


def test_a_document_that_kills_is_an_error_once_in_document_order(
    tmp_path: Path, log: Path
) -> None:
    queries = [{"query_id": f"q{i}", "text": f"query {i}"} for i in range(8)]
    corpus = [{"doc_id": f"d{i}", "text": f"document {i}"} for i in range(12)]
    corpus[4]["text"] = "prepare:kill"
    run_rows = [{"query_id": f"q{i}", "doc_id": f"d{j}"} for i in range(8) for j in range(12)]
    options = InputOptions(
        run=write_table(tmp_path / "run.parquet", run_rows),
        queries=write_table(tmp_path / "queries.parquet", queries),
        corpus=write_table(tmp_path / "corpus.parquet", corpus),
    )
    run(options, tmp_path / "out", log, order="document")
    assert codes(tmp_path / "out") == {(f"q{i}", "d4"): "crashed" for i in range(8)}
    assert len(scores(tmp_path / "out")) == 96
    assert log.read_text().count("read prepare:kill") == 3


def test_an_actor_that_dies_while_it_starts_ends_the_job_with_the_cause(
    tmp_path: Path, log: Path
) -> None:
    killer = tmp_path / "model-that-kills"
    shutil.copytree(TINY, killer)
    sets = write_sets(tmp_path / "sets.parquet", text_rows(4, 5), 4)
    config = RerankerConfig(model=str(killer), num_threads=1)
    started = time.monotonic()
    with pytest.raises(
        JobError, match="died 2 times while it loaded .*-that-kills: too little mem"
    ):
        run(sets, tmp_path / "out", log, config)
    assert log.read_text().split("\n").count("start") == 2
    assert time.monotonic() - started < 60  # asked for: within a minute


@pytest.mark.parametrize(
    ("share", "cause"), [(0.5, "incomplete metadata"), (0.0, "header too small")], ids=str
)
def test_weights_that_are_cut_off_are_refused_with_the_cause(
    tmp_path: Path, share: float, cause: str
) -> None:
    """The real engine, before anything is started."""
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
    sets = write_sets(tmp_path / "sets.parquet", text_rows(4, 5), 4)
    config = RerankerConfig(model=str(model), num_threads=1)
    with pytest.raises(UsageError, match=f"{model}/model.safetensors cannot be loaded: .*{cause}"):
        rerank(JobOptions(str(tmp_path / "out"), InputOptions(sets)), config)
    assert not (tmp_path / "out").exists()


def test_too_many_errors_stop_the_job_and_a_larger_budget_goes_on(
    tmp_path: Path, log: Path
) -> None:
    broken = [candidate(f"d{i}", text("prepare:raise")) for i in range(10)]
    rows = [query_row(i, broken) for i in range(40)]
    sets = write_sets(tmp_path / "sets.parquet", rows, 4)
    out = tmp_path / "out"
    with pytest.raises(TooManyErrors, match=r"of 400 pairs have an error \(\d+ x unexpected\)"):
        run(sets, out, log, max_errors=MaxErrors.parse("20%"))
    kept = sorted((out / "scores").glob("part-*.parquet"))
    assert kept and not (out / "_SUCCESS").exists()
    with pytest.raises(TooManyErrors):
        run(sets, out, log, max_errors=MaxErrors.parse("20%"))
    assert sorted((out / "scores").glob("part-*.parquet")) == kept
    summary = run(sets, out, log, max_errors=MaxErrors.parse("100%"))
    assert summary.manifest.errors == {"unexpected": 400}


def test_a_file_that_is_gone_costs_its_own_units_alone(tmp_path: Path, log: Path) -> None:
    (tmp_path / "sets").mkdir()
    for number in range(3):
        write_sets(tmp_path / "sets" / f"{number}.parquet", text_rows(8, 10), 4)
    garbage = bytearray((tmp_path / "sets" / "1.parquet").read_bytes())
    garbage[4:200] = b"\xff" * 196  # a page, not the footer
    (tmp_path / "sets" / "1.parquet").write_bytes(garbage)
    with pytest.raises(
        UnitsFailed, match=r"units have no rows, all others are written:\n.*1\.parq"
    ):
        run(str(tmp_path / "sets"), tmp_path / "out", log)
    written = {path.name for path in (tmp_path / "out" / "scores").glob("part-*.parquet")}
    assert {"part-000000.parquet", "part-000001.parquet"} <= written
    assert {"part-000004.parquet", "part-000005.parquet"} <= written
    assert sum(pq.read_metadata(p).num_rows for p in (tmp_path / "out/scores").iterdir()) >= 160


def test_a_pair_that_hangs_a_device_is_that_rows_error(
    tmp_path: Path, log: Path, undisturbed: dict
) -> None:
    sets = write_sets(
        tmp_path / "sets.parquet", poisoned(text_rows(16, 10), {(9, 5): "score:hang"}), 4
    )
    with simulated({"head": {"num_cpus": 2, "num_gpus": 1}}) as place:
        arguments = [str(log), sets, str(tmp_path / "out"), str(TINY), str(place.address)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.poison", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert codes(tmp_path / "out") == {(9, "d5"): "timed_out"}
    assert_others_are_as_undisturbed(tmp_path / "out", undisturbed)


def run_in_little_memory(
    log: Path, sets: str, output: Path, model: Path
) -> "subprocess.CompletedProcess[str]":
    """On a Ray of its own, for which memory is full when 3 GiB more are taken than now."""
    kib = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = int(kib["MemTotal"]) << 10, int(kib["MemAvailable"]) << 10
    threshold = (total - free + (3 << 30)) / total
    if threshold > 0.9:
        pytest.skip("too little memory is free for a row to take it")
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.poison", str(log), sets, str(output), str(model)],
        cwd=ROOT,
        env=os.environ | {"RAY_memory_usage_threshold": f"{threshold:.3f}"},
        capture_output=True,
        text=True,
    )


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="free memory is read as Linux has it")
def test_a_row_that_takes_all_memory_is_that_rows_error(
    tmp_path: Path, log: Path, undisturbed: dict
) -> None:
    """Ray's own memory monitor kills whatever worker began last, innocent ones among them."""
    sets = write_sets(
        tmp_path / "sets.parquet", poisoned(text_rows(16, 10), {(9, 5): "prepare:grow"}), 4
    )
    done = run_in_little_memory(log, sets, tmp_path / "out", TINY)
    assert done.returncode == 0, done.stderr
    assert codes(tmp_path / "out") == {(9, "d5"): "crashed"}
    assert_others_are_as_undisturbed(tmp_path / "out", undisturbed)
    assert log.read_text().count("read prepare:grow") == 3


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="free memory is read as Linux has it")
def test_a_model_that_takes_all_memory_ends_the_job_with_the_cause(
    tmp_path: Path, log: Path
) -> None:
    shutil.copytree(TINY, tmp_path / "model-that-grows")
    sets = write_sets(tmp_path / "sets.parquet", text_rows(4, 5), 4)
    done = run_in_little_memory(log, sets, tmp_path / "out", tmp_path / "model-that-grows")
    assert done.returncode == 1
    assert re.search("died 2 times while it loaded .*-that-grows: too little memory", done.stderr)
    assert log.read_text().split("\n").count("start") == 2
