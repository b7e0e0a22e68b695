from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER
from shardrank.actors.model.checkpoint import checkpoint_fingerprint
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.scorer import Scorer
from shardrank.cli import main
from shardrank.jobs.errors import UsageError, VerificationError
from shardrank.jobs.inputs.forms import InputOptions, open_job_input
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.outputs.job import as_kept, job_fingerprint, kept_input
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.run.rescore import parse_share, rescored
from shardrank.jobs.storage import Location
from tests.support.engine import TINY
from tests.support.job_cases import plan_of, run_inline, text_rows, write_sets

OWN = Engine(Preprocessor, Scorer)
NUM_QUERIES, NUM_DOCUMENTS = 4, 6


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A finished job of two units, scored by the tiny model."""
    return finished(tmp_path, text_rows(4, 6))


def finished(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    options = InputOptions(write_sets(tmp_path / "sets.parquet", rows))
    config = RerankerConfig(model=str(TINY), num_threads=1)
    plan = plan_of(options, unit_pairs=12)
    output, counts = run_inline(plan, tmp_path / "out", engine=OWN, config=config)
    opened = open_job_input(options)
    job = job_fingerprint(
        opened, plan, config, QWEN3_VL_RERANKER, checkpoint_fingerprint(TINY), 12, False
    )
    model = {"name": config.model, "revision": config.revision}
    manifest = Manifest(output, as_kept(job), model, input=kept_input(options), dtype="float32")
    manifest.counts = counts
    manifest.save()
    return tmp_path / "out"


def change(job: Path, file: str, name: str, values: pa.Array) -> None:
    table = pq.read_table(job / "scores" / file)
    table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, job / "scores" / file)


def test_a_finished_jobs_pairs_have_the_same_scores_alone(job: Path) -> None:
    found = rescored(str(job), 1.0, OWN)
    assert found.num_pairs == NUM_QUERIES * NUM_DOCUMENTS
    assert 0 <= found.max_difference <= 1e-5
    assert not found.failed
    assert "24 pairs scored again, each alone: the largest difference of a score is" in str(found)


def test_two_candidate_sets_of_one_query_id_are_ranked_apart(tmp_path: Path) -> None:
    """Also where they have the same documents."""
    rows = text_rows(4, 6)
    rows[1]["query_id"] = rows[0]["query_id"]
    found = rescored(str(finished(tmp_path, rows)), 1.0, OWN)
    assert (found.num_pairs, found.moved, found.failed) == (24, [], [])


def test_a_share_is_taken_of_every_unit_and_is_the_same_every_time(job: Path) -> None:
    assert rescored(str(job), 0.01, OWN).num_pairs == 2
    assert rescored(str(job), 0.25, OWN) == rescored(str(job), 0.25, OWN)


def test_a_score_that_is_another_is_measured_and_its_rank_said(job: Path) -> None:
    table = pq.read_table(job / "scores" / "part-000000.parquet")
    logits = table["logit"].to_pylist()
    logits[0] = (
        logits[5] - 1.0
    )  # the first query's best becomes its worst, and is still called best
    change(job, "part-000000.parquet", "logit", pa.array(logits, pa.float32()))
    scores = table["score"].to_pylist()
    scores[0] += 0.25
    change(job, "part-000000.parquet", "score", pa.array(scores, pa.float32()))
    found = rescored(str(job), 1.0, OWN)
    assert found.max_difference == pytest.approx(0.25, abs=1e-5)
    assert {each.rank: each.new_rank for each in found.moved} == {2: 1, 3: 2, 4: 3, 5: 4, 6: 5}
    assert "5 ranks moved (query_id 0, doc_id" in str(found)


def test_an_input_that_changed_is_refused(job: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another input"):
        write_sets(tmp_path / "sets.parquet", text_rows(4, 5))
        rescored(str(job), 1.0, OWN)


def test_another_model_is_refused(job: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(Output(Location.parse(str(job))))
    assert manifest is not None
    manifest.job["model"]["weights"] = "0" * 64
    manifest.save()
    with pytest.raises(UsageError, match="is not the model that the job had"):
        rescored(str(job), 1.0, OWN)


@pytest.mark.parametrize("share", ["1", "0%", "101%", "-1%", "one", "1 %"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(UsageError, match="--rescore must be a share"):
        parse_share(share)


def test_rows_that_changed_since_the_job_ended_are_named(job: Path) -> None:
    assert verify_output(str(job)).num_pairs == 24
    table = pq.read_table(job / "scores" / "part-000001.parquet")
    pq.write_table(table.replace_schema_metadata(None), job / "scores" / "part-000001.parquet")
    assert verify_output(str(job)).num_pairs == 24  # the rows are the same
    nudged = pc.add(table["score"], pa.scalar(1e-6, pa.float32()))
    change(job, "part-000001.parquet", "score", nudged.combine_chunks())
    with pytest.raises(VerificationError, match="part-000001.parquet has other rows"):
        verify_output(str(job))


def test_verify_says_what_it_rescored(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(job), "--rescore", "10%"]) == 0
    assert "4 pairs scored again, each alone" in capsys.readouterr().out
