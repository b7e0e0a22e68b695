"""`shardrank status` and `shardrank verify` on what jobs leave, whole and broken."""

import json
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shardrank import watching
from shardrank.actors.config import RerankerConfig
from shardrank.cli import main
from shardrank.jobs.command import pasteable
from shardrank.jobs.errors import UsageError, VerificationError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs import done
from shardrank.jobs.outputs.job import kept_command, kept_input
from shardrank.jobs.outputs.lease import LEASE, leased
from shardrank.jobs.outputs.status import read_status
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.rerank import JobOptions, rerank
from shardrank.jobs.storage import Location
from tests.support import standin
from tests.support.job_cases import image, text_rows, workers_here, write_sets, write_table
from tests.support.terminal import Terminal

CONFIG = RerankerConfig(model=str(Path(__file__).parents[1] / "golden" / "tiny"), num_threads=1)
COMMAND = ("rerank", "sets.parquet", "--output=s3://KEY:SECRET@bucket/out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's output: 12 queries, 4 units, 3 broken images; its input lies beside it."""
    path = tmp_path_factory.mktemp("job")
    rows = text_rows(12, 5)
    for query in (1, 2, 7):
        rows[query]["candidates"][3]["doc"] = image(b"broken")
    sets = write_sets(path / "sets.parquet", rows, row_group_size=3)
    options = JobOptions(str(path / "out"), InputOptions(sets), unit_pairs=15, command=COMMAND)
    with pytest.MonkeyPatch.context() as monkeypatch:
        workers_here(monkeypatch)
        rerank(options, CONFIG, standin.make_engine())
    return path


@pytest.fixture
def job(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may break; its manifest names the same input."""
    import shutil

    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out"


def printed(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def test_a_finished_job(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = json.loads(printed(capsys, "status", job, "--json"))
    assert (status["state"], status["num_units"], status["num_units_done"]) == ("finished", 4, 4)
    assert (status["num_pairs"], status["errors"]) == (60, {"image_decode": 3})
    assert len(status["slowest"]) == 4 and status["resume"] is None
    assert all(unit["seconds"] > 0 for unit in status["slowest"])
    told = printed(capsys, "status", job)
    assert "4 of 4 done" in told and "3 x image_decode" in told and "pairs/s" in told


def test_a_stopped_job_says_how_to_go_on_and_keeps_no_secret(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "_SUCCESS").unlink()
    (job / "scores" / "part-000002.parquet").unlink()
    told = printed(capsys, "status", job)
    assert "stopped" in told and "3 of 4 done" in told
    assert f"cd {os.getcwd()} && {pasteable(COMMAND)}" in told
    assert "--output=s3://***@bucket/out" in told
    assert "SECRET" not in told + (job / "manifest.json").read_text()


def test_a_job_that_had_too_many_errors_says_what_to_add(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "_SUCCESS").unlink()
    manifest = json.loads((job / "manifest.json").read_text())
    (job / "manifest.json").write_text(json.dumps(manifest | {"max_errors": 2}))
    told = printed(capsys, "status", job)
    assert (
        f"to leave those rows without a score:\n  cd {os.getcwd()} && " in told
        and "--max-errors=100%" in told
    )
    assert "--max-errors=100%" in json.loads(printed(capsys, "status", job, "--json"))["resume"]


def test_a_running_job_and_one_that_ended_without_a_word(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "_SUCCESS").unlink()
    with leased(Location.parse(str(job))):
        assert "running (process " in printed(capsys, "status", job)
        holder = json.loads((job / LEASE).read_text())
    (job / LEASE).write_text(json.dumps(holder | {"born": "0"}))
    assert "stopped without a word (process " in printed(capsys, "status", job)


def test_a_finished_job_that_lost_a_score_file_is_stopped_and_says_how_to_go_on(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "scores" / "part-000002.parquet").unlink()
    told = printed(capsys, "status", job)
    assert "stopped" in told and "3 of 4 done" in told and "go on with" in told


def test_a_success_beside_the_manifest_of_a_run_that_goes_on_is_none(job: Path) -> None:
    place = job / "manifest.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"status": "running"}))
    assert read_status(str(job)).state == "stopped"


def test_a_lease_that_is_not_renewed_is_said_to_be_old(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "_SUCCESS").unlink()
    lease = job / LEASE
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "then"}))
    assert "running (process 7 on elsewhere, since then)" in printed(capsys, "status", job)
    os.utime(lease, (time.time() - 720, time.time() - 720))
    told = " ".join(printed(capsys, "status", job).split())
    assert "its lease is 12:00 old: probably dead" in told and "go on with" in told
    status = json.loads(printed(capsys, "status", job, "--json"))
    assert status["state"] == "running" and 720 <= status["lease_age_s"] < 780


def test_what_is_no_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not the output of a job"):
        read_status(str(tmp_path))
    (tmp_path / "file").write_text("")
    assert main(["status", str(tmp_path)]) == 2


def test_verify_proves_a_whole_job(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "60 pairs of 12 queries: each has exactly one row (57 with a score" in printed(
        capsys, "verify", job
    )
    assert json.loads(printed(capsys, "verify", job, "--json"))["errors"] == {"image_decode": 3}


def _lost(job: Path) -> None:
    file = job / "scores" / "part-000001.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)


def _doubled(job: Path) -> None:
    file = job / "scores" / "part-000001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take([0, *range(table.num_rows)]), file)


def _gone(job: Path) -> None:
    (job / "scores" / "part-000001.parquet").unlink()


def _stray(job: Path) -> None:
    (job / "scores" / "copy.parquet").write_bytes(
        (job / "scores" / "part-000001.parquet").read_bytes()
    )


def _garbage(job: Path) -> None:
    (job / "scores" / "part-000001.parquet").write_bytes(b"PAR1 and nothing")


@pytest.mark.parametrize(
    ("breaks", "sentence"),
    [
        (_lost, "1 pairs are missing"),
        (_doubled, "1 too many"),
        (_gone, "1 of 4 units have no score file, the first is part-000001"),
        (_stray, "1 files that are none of this job's, such as copy.parquet"),
        (_garbage, "part-000001.parquet cannot be read"),
    ],
)
def test_verify_finds_what_is_broken(
    breaks: Any, sentence: str, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks(job)
    with pytest.raises(VerificationError, match=sentence):
        verify_output(str(job))
    assert main(["verify", str(job)]) == 1
    assert sentence in capsys.readouterr().err


def test_verify_refuses_another_input(finished: Path, job: Path) -> None:
    sets = finished / "sets.parquet"
    content = sets.read_bytes()
    write_sets(sets, text_rows(2, 2))
    try:
        with pytest.raises(UsageError, match="made of another input: .*sets.parquet has changed"):
            verify_output(str(job))
    finally:
        sets.write_bytes(content)


def test_a_document_major_job_is_verified_too(tmp_path: Path, without_ray: None) -> None:
    run = [{"query_id": f"q{i}", "doc_id": f"d{j}"} for i in range(6) for j in range(8)]
    options = InputOptions(
        run=write_table(tmp_path / "run.parquet", run),
        queries=write_table(
            tmp_path / "q.parquet", [{"query_id": f"q{i}", "text": f"q {i}"} for i in range(6)]
        ),
        corpus=write_table(
            tmp_path / "c.parquet", [{"doc_id": f"d{j}", "text": f"d {j}"} for j in range(8)]
        ),
    )
    job = JobOptions(str(tmp_path / "out"), options, unit_pairs=16, order="document")
    rerank(job, CONFIG, standin.make_engine())
    assert verify_output(str(tmp_path / "out")).num_pairs == 48


def test_what_is_kept_of_a_command() -> None:
    kept = kept_input(InputOptions("s3://A:B@bucket/in", maps=("input.doc=d",)))
    assert kept["input"] == "s3://***@bucket/in" and kept["maps"] == ("input.doc=d",)
    assert kept_input(InputOptions("x.parquet"))["input"] == os.path.abspath("x.parquet")
    assert kept_command(["rerank", "x"])["arguments"] == ["rerank", "x"]


def _unfinished(job: Path) -> list[Path]:
    """The score files but the first, moved away; the job is one that is stopped."""
    (job / "_SUCCESS").rename(job.parent / "_SUCCESS")
    files = sorted((job / "scores").glob("*.parquet"))[1:]
    return [file.rename(job.parent / file.name) for file in files]


def _finish(job: Path) -> None:
    (job.parent / "_SUCCESS").rename(job / "_SUCCESS")


def test_a_terminal_shows_a_job_until_it_is_finished(job: Path) -> None:
    left = _unfinished(job)
    with leased(Location.parse(str(job))):
        command = [sys.executable, "-m", "shardrank.cli", "status", str(job), "0.2", "--watch"]
        terminal = Terminal(command, 80, {"COLUMNS": "200"})
        assert terminal.watch(lambda text: "1 of 4 done" in text and "running" in text)
        left[0].rename(job / "scores" / left[0].name)
        assert terminal.watch(lambda text: "2 of 4 done" in text and "ETA 0:" in text)
        assert [line for line in terminal.lines if "━" in line] == terminal.lines[-1:]
        for file in left[1:]:
            file.rename(job / "scores" / file.name)
        _finish(job)
        assert not terminal.watch()
    assert terminal.process.returncode == 0
    assert "4 of 4 done" in terminal.text and "slowest units" in terminal.text
    assert not any("━" in line or "running" in line for line in terminal.lines)


def test_who_has_seen_enough_leaves_without_a_word(job: Path) -> None:
    _unfinished(job)
    with leased(Location.parse(str(job))):
        command = [sys.executable, "-m", "shardrank.cli", "status", "--watch", str(job), "60"]
        terminal = Terminal(command, 80)
        assert terminal.watch(lambda text: "1 of 4 done" in text)
        terminal.process.send_signal(signal.SIGINT)
        assert not terminal.watch()
    assert terminal.process.returncode == 130
    assert terminal.lines == []


def test_a_log_has_a_line_for_what_is_new_and_a_footer_is_read_once(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, read, looks = _unfinished(job), list[str](), count()
    unit_file = done._unit_file
    monkeypatch.setattr(
        done, "_unit_file", lambda place: (read.append(place.name), unit_file(place))[1]
    )

    def sleep(seconds: float) -> None:
        if next(looks) % 2:  # at every other look nothing is new
            file = left.pop()
            file.rename(job / "scores" / file.name)
        if not left:
            _finish(job)

    with leased(Location.parse(str(job))):
        monkeypatch.setattr(watching.time, "sleep", sleep)
        told = printed(capsys, "status", job, "1", "--watch")
    lines = [line[9:] for line in told.splitlines()[:4]]
    assert lines[0] == "running · 1 of 4 units · 15 rows · 2 errors"
    assert [line.partition(" units")[0] for line in lines] == [
        "running · 1 of 4", "running · 2 of 4", "running · 3 of 4", "finished · 4 of 4"
    ]  # fmt: skip
    assert len(read) == 4 and "4 of 4 done" in told


def test_a_watched_job_that_stops_says_so(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _unfinished(job)
    assert main(["status", str(job), "--watch", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"
    (job / LEASE).write_text(json.dumps({"host": "elsewhere", "pid": 7, "run": "r", "renewed": 3}))
    monkeypatch.setattr(watching, "_BELIEVED_DEAD_S", 0.3)
    assert main(["status", str(job), "0.1", "--watch"]) == 1
    assert "running · 1 of 4 units" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["3"], ["0", "--watch"], ["nan", "--watch"]])
def test_seconds_are_those_between_two_looks(job: Path, arguments: list[str]) -> None:
    assert main(["status", str(job), *arguments]) == 2
