"""Storage that fails under a job: requests, disks, and input files that are not what they were."""

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.actors.errors import MediaNotFound, MediaTooLarge
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.scorer import Scorer
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.rerank import JobOptions, Summary, rerank
from shardrank.jobs.run.attempts import AttemptLog
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.run.pipeline import packed
from shardrank.jobs.run.preparing import prepare_unit
from shardrank.jobs.storage import Location, list_files, read_bytes, write_atomically
from shardrank.jobs.units.plan import Plan
from tests.faults.fault_proxy import BROKEN_OFF, DROPPED, SLOW_DOWN, every, faulty
from tests.support import standin
from tests.support.job_cases import (
    plan_of,
    run_inline,
    score_rows,
    text_rows,
    write_sets,
    write_table,
)

TINY = Path(__file__).parent.parent / "golden" / "tiny"
REAL = Engine(Preprocessor, Scorer)
CONFIG = RerankerConfig(model=str(TINY), num_threads=1)


def run(sets: str, output: str, **options: Any) -> Summary:
    job = JobOptions(output, InputOptions(sets), **{"unit_pairs": 20} | options)
    return rerank(job, CONFIG, standin.make_engine())


def test_a_job_between_buckets_that_fail_every_fifth_request(
    tmp_path: Path, s3_endpoint: str, ray_address: str
) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(40, 10), row_group_size=2)
    with faulty(s3_endpoint) as proxy:
        place = Location.parse(f"s3://bucket/job{proxy.query}")
        write_atomically(place.child("sets.parquet"), Path(sets).read_bytes())
        proxy.requests.clear()
        proxy.faults = every(5, [SLOW_DOWN, DROPPED, BROKEN_OFF])
        output = f"s3://bucket/job/out{proxy.query}"
        summary = run(f"s3://bucket/job/sets.parquet{proxy.query}", output)
        assert (summary.manifest.status, summary.counts.num_pairs) == ("finished", 400)
        assert proxy.num_failed > 20
        proxy.faults = lambda request: None
        rows: list[dict[str, Any]] = []
        for found, _ in list_files(place.child("out").child("scores")):
            rows += pq.read_table(pa.BufferReader(read_bytes(found))).to_pylist()
    run_inline(plan_of(sets, 20), tmp_path / "inline")
    assert rows == score_rows(tmp_path / "inline")


def command(sets: str, output: str, *more: str) -> list[str]:
    arguments = ["rerank", sets, f"--output={output}", f"--model={TINY}", "--unit-pairs=20"]
    return [sys.executable, "-m", "shardrank.cli", *arguments, "--threads=1", *more]


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(2, 2))
    done = subprocess.run(command(sets, "/proc/out"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --output: /proc/out/_RUNNING cannot be")
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_the_job_and_loses_nothing(
    tmp_path: Path, small_disk: Path, ray_address: str
) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(120, 10), row_group_size=2)
    out = small_disk / "out"
    with pytest.raises(JobError, match=r"part-\d+.parquet cannot be written: No space left"):
        run(sets, str(out))
    kept = {path.name: path.read_bytes() for path in (out / "scores").glob("part-*.parquet")}
    assert 3 < len(kept) < 60
    assert not [path.name for path in (out / "scores").iterdir() if path.name.endswith(".tmp")]
    assert not (out / "_SUCCESS").exists()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert run(sets, str(out)).counts.num_pairs == 1_200
    run_inline(plan_of(sets, 20), tmp_path / "inline")
    assert score_rows(out) == score_rows(tmp_path / "inline")
    assert all((out / "scores" / name).read_bytes() == content for name, content in kept.items())


# Input files


def failures_of(plan: Plan) -> dict[int, str]:
    """What preparing each unit leaves in the log."""
    log = AttemptLog()
    for unit in plan.units:
        batch = pa.table({"unit": pa.array([pickle.dumps(unit)], pa.binary())})
        list(prepare_unit(batch, plan.input, packed(standin.make_engine()), CONFIG, log, 60.0))
    return log.failures()


def test_a_file_that_changed_or_went_since_the_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    for number in range(3):
        write_sets(tmp_path / "sets" / f"{number}.parquet", text_rows(4, 5))
    plan = plan_of(str(tmp_path / "sets"), 20)
    assert failures_of(plan) == {}
    write_sets(tmp_path / "sets" / "0.parquet", text_rows(4, 6))
    (tmp_path / "sets" / "2.parquet").unlink()
    failures = failures_of(plan)
    assert failures.keys() == {0, 2}
    assert "0.parquet has changed since the job was planned" in failures[0]
    assert "2.parquet is gone since the job was planned" in failures[2]


def test_a_table_by_rows_that_changed_is_named(tmp_path: Path) -> None:
    options = InputOptions(
        run=write_table(tmp_path / "run.parquet", [{"query_id": "q", "doc_id": "d"}]),
        queries=write_table(tmp_path / "q.parquet", [{"query_id": "q", "text": "a"}]),
        corpus=write_table(tmp_path / "c.parquet", [{"doc_id": "d", "text": "b"}]),
    )
    plan = plan_of(options)
    os.utime(tmp_path / "c.parquet", ns=(1, 1))
    assert "c.parquet has changed since the job was planned" in failures_of(plan)[0]


def test_a_text_that_is_not_utf8_is_its_rows_error_and_an_id_its_units(tmp_path: Path) -> None:
    path = tmp_path / "sets.parquet"
    write_sets(path, text_rows(2, 3), row_group_size=1)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=1, compression=None, use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"document 1", b"document \xff"))
    run_inline(plan_of(str(path), 20), tmp_path / "out", engine=REAL, config=CONFIG)
    codes = [(row["doc_id"], row["error_code"] or "") for row in score_rows(tmp_path / "out")]
    assert sorted(codes) == [("d0", "")] * 2 + [("d1", "invalid_content")] * 2 + [("d2", "")] * 2
    path.write_bytes(content.replace(b"d1", b"d\xff"))
    (failure,) = failures_of(plan_of(str(path), 20)).values()
    assert "doc_id 'd\\udcff' is not UTF-8" in failure


MUTATE = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_storage_job import mutations, outcome
path = Path(sys.argv[1])
for content in mutations(path.read_bytes(), int(sys.argv[2])):
    path.write_bytes(content)
    print(outcome(path), flush=True)
"""


def mutations(content: bytes, num: int) -> Iterator[bytes]:
    """Files cut anywhere, with flipped bytes, with garbage between the magic words, and empty."""
    source = random.Random(0)
    yield from (b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 100 + b"\x40\0\0\0PAR1")
    for _ in range(num):
        changed = bytearray(content)
        match source.randrange(3):
            case 0:
                del changed[source.randrange(len(changed)) :]
            case 1:
                for _ in range(source.randrange(1, 8)):
                    changed[source.randrange(len(changed))] = source.randrange(256)
            case 2:
                start = source.randrange(4, len(changed) - 8)
                stop = min(len(changed) - 8, start + source.randrange(1, 200))
                changed[start:stop] = source.randbytes(stop - start)
        yield bytes(changed)


def outcome(path: Path) -> str:
    try:
        plan = plan_of(str(path), 20)
    except UsageError as error:
        return "refused" if path.name in str(error) or "input" in str(error) else repr(error)
    failures = failures_of(plan)
    if any(path.name not in message for message in failures.values()):
        return repr(failures)
    return "failed" if failures else "read"


def test_damaged_parquet_is_refused_or_costs_its_units_and_no_process(tmp_path: Path) -> None:
    path = tmp_path / "sets.parquet"
    write_sets(path, text_rows(30, 5), row_group_size=10)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", "tests/faults"])}
    done = subprocess.run(
        [sys.executable, "-c", MUTATE, str(path), "300"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    outcomes = done.stdout.splitlines()
    assert done.returncode == 0, (len(outcomes), done.stderr[-2_000:])
    assert len(outcomes) == 304 and set(outcomes) == {"refused", "failed", "read"}


# Media behind paths


def test_media_paths_that_are_no_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "directory", "zero", "/dev/urandom"):
        with pytest.raises(MediaNotFound):
            MediaReader().read(str(tmp_path / name))


def test_a_file_far_too_large_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as stream:
        stream.truncate(10 << 30)  # takes no room
    with pytest.raises(MediaTooLarge, match="10,737,418,240 bytes, over the limit of 2,147"):
        MediaReader().read(str(tmp_path / "large.png"))
