"""The job with a stand-in scorer, and with the real engine on tests/golden: on a real local Ray, or
in this process alone where that is the same.
"""

import json
import re
import shlex
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from shardrank.actors.config import RerankerConfig
from shardrank.cli import main
from shardrank.jobs.errors import JobError, UnitsFailed, UsageError, VerificationError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.budget import MaxErrors
from shardrank.jobs.rerank import JobOptions, Summary, rerank
from shardrank.jobs.run import execution
from shardrank.jobs.run.engine import Engine
from tests.support import standin
from tests.support.engine import GOLDEN, TINY, golden_cases
from tests.support.job_cases import (
    MEDIA,
    image,
    plan_of,
    run_inline,
    score_rows,
    text_rows,
    write_sets,
)
from tests.support.terminal import Terminal

ON_RAY = pytest.mark.usefixtures("ray_address")
HERE = pytest.mark.usefixtures("without_ray")

CONFIG = RerankerConfig(model=str(TINY), num_threads=1, media_root=str(GOLDEN))


def run_stand_in(input: str, output: Path | str, **options: Any) -> Summary:
    job = JobOptions(output=str(output), input=InputOptions(input), **options)
    return rerank(job, CONFIG, standin.make_engine())


def manifest_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text())


def mtimes(output: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_mtime_ns for path in (output / "scores").glob("part-*.parquet")
    }


@ON_RAY
def test_a_job_writes_every_pair_its_manifest_and_success(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(20, 10), row_group_size=5)
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"{i} 0 d3 1\n" for i in range(20)))
    out = tmp_path / "out"
    summary = run_stand_in(
        sets,
        out,
        unit_pairs=50,
        with_rankings=True,
        with_trec_run=True,
        qrels=str(qrels),
        measures=("nDCG@10",),
        gpu_hour_price=2.0,
    )
    manifest = manifest_of(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "_SUCCESS",
        "manifest.json",
        "rankings",
        "run.trec",
        "scores",
    ]
    assert (manifest["status"], manifest["job"]["num_units"]) == ("finished", 4)
    assert (manifest["num_pairs"], manifest["num_failed"], manifest["num_tokens"]) == (200, 0, 600)
    assert summary.measures["nDCG@10"] == manifest["measures"]["nDCG@10"] > 0
    run_inline(plan_of(sets, 50), tmp_path / "inline")
    assert score_rows(out) == score_rows(tmp_path / "inline")


@HERE
def test_the_same_command_does_only_what_is_missing(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(20, 10), row_group_size=5)
    out = tmp_path / "out"
    run_stand_in(sets, out, unit_pairs=50)
    undisturbed, written = score_rows(out), mtimes(out)
    assert run_stand_in(sets, out, unit_pairs=50).was_finished
    (out / "scores" / "part-000002.parquet").unlink()  # as `verify` asks for, and nothing else
    (out / "scores" / ".part-000003.parquet.00000000.tmp").write_text("half a file")
    assert not run_stand_in(sets, out, unit_pairs=50).was_finished
    assert score_rows(out) == undisturbed
    changed = {name for name, mtime in mtimes(out).items() if written.get(name) != mtime}
    assert changed == {"part-000002.parquet"}
    assert manifest_of(out)["num_runs"] == 2


@ON_RAY
def test_a_unit_of_many_chunks_is_one_file(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(3, 1_700))
    run_stand_in(sets, tmp_path / "out", unit_pairs=10_000)
    (file,) = (tmp_path / "out" / "scores").iterdir()
    rows = pq.read_table(file).to_pylist()
    assert len({(row["query_id"], row["doc_id"]) for row in rows}) == len(rows) == 5_100
    assert [row["rank"] for row in rows] == [*range(1, 1_701)] * 3


@HERE
def test_too_few_cpus_for_the_pool_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(2, 2))
    with pytest.raises(UsageError, match="too few CPUs: 2 scoring actors .* need 3"):
        run_stand_in(sets, tmp_path / "out", num_actors=2)
    assert not (tmp_path / "out").exists()


class BrokenScorer:
    def __init__(self, config: RerankerConfig) -> None:
        raise ValueError("the weights are broken")


@ON_RAY
def test_an_actor_that_cannot_start_fails_the_job_with_its_cause(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(2, 2))
    engine = Engine(standin.StandInPreprocessor, _by_value(BrokenScorer))
    with pytest.raises(JobError, match="the weights are broken"):
        rerank(JobOptions(str(tmp_path / "out"), InputOptions(sets)), CONFIG, engine)
    assert manifest_of(tmp_path / "out")["status"] == "running"
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def _by_value(scorer: Any) -> Any:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[scorer.__module__])
    return scorer


@HERE
def test_a_score_file_that_lost_a_row_is_found(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(4, 4))
    out = tmp_path / "out"
    run_stand_in(sets, out)
    (out / "_SUCCESS").unlink()
    file = out / "scores" / "part-000000.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(VerificationError, match="1 pairs are missing .* delete the file"):
        run_stand_in(sets, out)


@HERE
def test_a_file_that_breaks_on_reading_fails_the_job_by_name_after_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_POLL_EVERY_S", 0)
    path = tmp_path / "sets" / "0.parquet"
    path.parent.mkdir()
    write_sets(path, text_rows(50, 20))
    write_sets(path.with_name("1.parquet"), text_rows(20, 5), row_group_size=2)
    content = bytearray(path.read_bytes())
    content[20:600] = b"\xff" * 580  # pages, not the footer
    path.write_bytes(content)
    with pytest.raises(UnitsFailed, match=r"50 units have no rows.*\n.*0\.parquet cannot be read"):
        run_stand_in(
            str(path.parent), tmp_path / "out", unit_pairs=20, max_errors=MaxErrors.parse("0")
        )
    assert len(score_rows(tmp_path / "out")) == 100


@ON_RAY
def test_input_and_output_may_be_on_s3(s3_endpoint: str, tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(10, 5), row_group_size=2)
    query = f"?scheme=http&endpoint_override={urlsplit(s3_endpoint).netloc}&region=us-east-1"
    bucket = fs.S3FileSystem(endpoint_override=s3_endpoint, region="us-east-1")
    with bucket.open_output_stream("bucket/in/sets.parquet") as stream:
        stream.write(Path(sets).read_bytes())
    summary = run_stand_in(f"s3://bucket/in{query}", f"s3://bucket/out{query}", unit_pairs=20)
    run_inline(plan_of(sets, 20), tmp_path / "inline")
    scores = pq.read_table("bucket/out/scores", filesystem=bucket).to_pylist()
    assert scores == score_rows(tmp_path / "inline")
    assert bucket.get_file_info("bucket/out/_SUCCESS").type == fs.FileType.File
    assert summary.output == "s3://bucket/out"
    again = run_stand_in(f"s3://bucket/in{query}", f"s3://bucket/out{query}", unit_pairs=20)
    assert again.was_finished


# The real engine


GOLDEN_CONTENT = pa.struct(
    [
        ("text", pa.list_(pa.string())),
        ("image", pa.list_(MEDIA)),
        (
            "video",
            pa.list_(
                pa.struct([*MEDIA, ("frames", pa.list_(MEDIA)), ("fps", pa.float64())]),
            ),
        ),
    ]
)


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _media(path: str, embed: bool) -> dict[str, Any]:
    content = (GOLDEN / path).read_bytes() if embed else None
    return {"bytes": content, "path": path}


def golden_content(side: dict[str, Any], embed: bool) -> dict[str, Any]:
    """A side of a golden case in the widest Arrow type; media as bytes, or as paths."""
    content: dict[str, Any] = {"text": None, "image": None, "video": None}
    if side.get("text") is not None:
        content["text"] = _many(side["text"])
    if "image" in side:
        content["image"] = [_media(path, embed) for path in _many(side["image"])]
    if isinstance(side.get("video"), list):
        content["video"] = [{"frames": [_media(path, embed) for path in side["video"]]}]
    elif "video" in side:
        content["video"] = [_media(side["video"], embed)]
    return content


def write_golden(path: Path) -> str:
    rows = []
    for index, case in enumerate(golden_cases()):
        content = {
            name: golden_content(case[name], index % 2 == 0) for name in ("query", "document")
        }
        limits = {name: case.get(name) for name in ("fps", "max_frames", "max_length")}
        candidates = [{"doc_id": "d", "doc": content["document"]}]
        rows.append(
            {"query_id": case["id"], "query": content["query"], "candidates": candidates}
            | {"instruction": case.get("instruction")}
            | limits
        )
    candidate = pa.struct([("doc_id", pa.string()), ("doc", GOLDEN_CONTENT)])
    schema = pa.schema(
        [
            ("query_id", pa.string()),
            ("query", GOLDEN_CONTENT),
            ("candidates", pa.list_(candidate)),
            ("instruction", pa.string()),
            ("fps", pa.float64()),
            ("max_frames", pa.int32()),
            ("max_length", pa.int32()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return str(path)


@ON_RAY
def test_the_job_gives_the_official_scores(tmp_path: Path) -> None:
    config = RerankerConfig(
        model=str(TINY),
        num_threads=2,
        media_root=str(GOLDEN),
        special_tokens="official",
        empty="official",
        image_depth="official",
    )
    golden = write_golden(tmp_path / "golden.parquet")
    rerank(JobOptions(str(tmp_path / "out"), InputOptions(golden), unit_pairs=20), config)
    rows = {row["query_id"]: row for row in score_rows(tmp_path / "out")}
    assert len(rows) == len(golden_cases())
    for case in golden_cases():
        if case["kind"] == "error":
            assert rows[case["id"]]["error_code"] == "aspect_ratio"
            continue
        assert rows[case["id"]]["score"] == pytest.approx(case["official"]["score"], abs=1e-4)
        num_tokens = sum(count for _, count in case["official"]["ids_rle"])
        assert rows[case["id"]]["num_tokens"] == num_tokens


BAD_DOCUMENTS = {
    "image_decode": {"image": [{"bytes": b"\x89PNG broken", "path": None}]},
    "media_not_found": {"image": [{"bytes": None, "path": "media/nowhere.png"}]},
    "media_forbidden": {"image": [{"bytes": None, "path": "../../conftest.py"}]},
    "unknown_scheme": {"image": [{"bytes": None, "path": "ftp://host/a.png"}]},
    "text_too_large": {"text": ["x" * 10_000_000]},
    "video_too_short": {"video": [{"frames": []}]},
    "video_decode": {"video": [{"bytes": b"not a video", "path": None}]},
    "invalid_content": {"video": [{"bytes": b"mp4", "fps": -1.0}]},
    "empty_document": {"text": [" "], "image": [{"bytes": None, "path": None}]},
}


@HERE
def test_each_bad_document_is_its_own_rows_error(tmp_path: Path) -> None:
    good = {"text": ["a good document"]}
    candidates = [{"doc_id": "good", "doc": good}]
    candidates += [{"doc_id": code, "doc": doc} for code, doc in BAD_DOCUMENTS.items()]
    candidates += [{"doc_id": "last", "doc": good}]
    rows = [{"query_id": "q", "query": "which?", "candidates": candidates}]
    candidate = pa.struct([("doc_id", pa.string()), ("doc", GOLDEN_CONTENT)])
    schema = pa.schema(
        [("query_id", pa.string()), ("query", pa.string()), ("candidates", pa.list_(candidate))]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "bad.parquet")
    job = JobOptions(str(tmp_path / "out"), InputOptions(str(tmp_path / "bad.parquet")))
    summary = rerank(job, CONFIG)
    found = {row["doc_id"]: row for row in score_rows(tmp_path / "out")}
    assert {code: found[code]["error_code"] for code in BAD_DOCUMENTS} == {
        code: code for code in BAD_DOCUMENTS
    }
    assert all(found[code]["score"] is None and found[code]["error"] for code in BAD_DOCUMENTS)
    assert found["good"]["score"] == pytest.approx(found["last"]["score"], abs=1e-6)
    assert summary.counts.num_failed == len(BAD_DOCUMENTS)


def command(sets: str, output: Path, address: str) -> list[str]:
    arguments = ["rerank", sets, f"--output={output}", f"--model={TINY}", "--threads=1"]
    return [
        *(sys.executable, "-m", "shardrank.cli", *arguments),
        *("--unit-pairs=20", f"--address={address}"),
    ]


def test_an_interrupted_job_was_seen_to_move_and_says_how_to_go_on(
    tmp_path: Path, ray_address: str
) -> None:
    """In a terminal of 80 columns, and of one unit, of which nothing is written."""
    sets = write_sets(tmp_path / "sets.parquet", text_rows(400, 40))
    out = tmp_path / "an output's"
    arguments = [*command(sets, out, ray_address), "--unit-pairs=20000"]
    terminal = Terminal(arguments, 80)
    for some in (r"[1-9]\d*", r"[1-9]\d*,\d*"):  # a few, then thousands
        moves = rf"{some}/16,000 pairs · [\d,]+/400 queries · [\d.,]+ pairs/s · .* ETA .* errors ━"
        assert terminal.watch(lambda text, moves=moves: re.search(moves, text) is not None)
    assert not list(out.glob("scores/*"))
    terminal.process.send_signal(signal.SIGINT)
    assert not terminal.watch()
    assert terminal.process.returncode == 130 and "━" not in terminal.text
    _, _, said = terminal.whole.partition("what is finished is kept, go on with:")
    assert shlex.split(said)[-len(arguments) :] == arguments
    assert manifest_of(out)["status"] == "running"


@ON_RAY
def test_after_too_many_errors_the_printed_commands_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = text_rows(4, 4)
    for row in rows[:3]:
        row["candidates"][2]["doc"] = image(None, "https://host.invalid/it's a page.png")
    sets = write_sets(tmp_path / "the sets.parquet", rows, row_group_size=1)
    given = ["rerank", sets, f"--output={tmp_path / 'out'}", f"--model={TINY}", "--threads=1"]
    assert main([*given, "--max-errors", "1", "--unit-pairs=4"]) == 1
    stderr = capsys.readouterr().err
    assert "one says: https://host.invalid/" in stderr
    commands = [shlex.split(line) for line in stderr.splitlines() if line.startswith("  ")]
    leave, again = (words[words.index("rerank") :] for words in commands)
    assert again[-2:] == ["--retry-errors=media_forbidden", "--web-media"]
    assert main(leave) == 0
    assert manifest_of(tmp_path / "out")["errors"] == {"media_forbidden": 3}


@HERE
def test_a_second_run_of_a_running_job_is_refused_and_costs_the_first_nothing(
    tmp_path: Path,
) -> None:
    from shardrank.jobs.outputs.lease import leased
    from shardrank.jobs.storage import Location

    sets = write_sets(tmp_path / "sets.parquet", text_rows(4, 4))
    out = tmp_path / "out"
    with leased(Location.parse(str(out))):
        with pytest.raises(UsageError, match="is being written by another run .*; wait for it"):
            run_stand_in(sets, out)
        assert sorted(path.name for path in out.iterdir()) == ["_RUNNING"]
    run_stand_in(sets, out)
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "manifest.json", "scores"]


@HERE
def test_units_with_errors_are_scored_again_on_request(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    rows = text_rows(9, 4)
    for query in (1, 8):
        rows[query]["candidates"][2]["doc"] = image(None, f"page-{query}.png")
    sets = write_sets(tmp_path / "sets.parquet", rows, row_group_size=3)
    config = replace(CONFIG, media_root=str(pages))
    out = tmp_path / "out"

    def run(*codes: str, **more: Any) -> Summary:
        job = JobOptions(str(out), InputOptions(sets), unit_pairs=12, retry_errors=codes, **more)
        return rerank(job, config)

    assert run().manifest.errors == {"media_not_found": 2}
    written = mtimes(out)
    assert run("image_decode").was_finished and mtimes(out) == written
    with pytest.raises(UsageError, match="too few CPUs"):
        run("all", num_actors=9)
    assert run().was_finished and mtimes(out) == written
    shutil.copy(GOLDEN / "media" / "fr0.png", pages / "page-1.png")
    summary = run("media_not_found")
    assert not summary.was_finished and summary.manifest.errors == {"media_not_found": 1}
    changed = {name for name, mtime in mtimes(out).items() if written[name] != mtime}
    assert changed == {"part-000000.parquet", "part-000002.parquet"}
    shutil.copy(GOLDEN / "media" / "fr0.png", pages / "page-8.png")
    assert run("all").manifest.errors == {}
    assert run("all").was_finished
