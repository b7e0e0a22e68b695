"""`shardrank search` and Pipeline: both stages together are the stages one by one."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shardrank import Embedder, Pipeline, Reranker
from shardrank.cli import main
from shardrank.jobs.evaluate.measures import load_run_from_scores
from tests.support.engine import GOLDEN
from tests.support.job_cases import write_table, write_text

EMBEDDER, RERANKER = GOLDEN / "text-embedding" / "tiny", GOLDEN / "text-reranker" / "tiny-tied"
QUERIES = ["What is the capital of China?", "Explain gravity"]
CORPUS = ["Beijing", "Gravity attracts two bodies.", "a cat", "Paris", "yes", "no", "a force"]
HERE = pytest.mark.usefixtures("without_ray")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    queries = [{"query_id": f"q{i}", "query": text} for i, text in enumerate(QUERIES)]
    corpus = [{"doc_id": f"d{i}", "text": text} for i, text in enumerate(CORPUS)]
    tables = {"queries": queries, "corpus": corpus}
    given = [f"--{n}={write_table(tmp_path / f'{n}.parquet', rows)}" for n, rows in tables.items()]
    models = [f"--embedder={EMBEDDER}", f"--model={RERANKER}", "--top-k=3", "--threads=1"]
    return ["search", *given, *models, f"--output={tmp_path / 'out'}"]


def expected() -> dict[str, dict[str, float]]:
    """Query -> document -> score, by the two models and numpy alone."""
    embedder, reranker = Embedder(str(EMBEDDER)), Reranker(str(RERANKER))
    cosines = embedder.embed(QUERIES, "query") @ embedder.embed(CORPUS).T
    found = {}
    for number, query in enumerate(QUERIES):
        best = np.argsort(-cosines[number])[:3].tolist()
        scores = reranker.score(query, [CORPUS[i] for i in best])
        found[f"q{number}"] = {f"d{i}": s for i, s in zip(best, scores, strict=True)}
    return found


def scores_of(output: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in pq.read_table(output / "reranked" / "scores").to_pylist():
        found.setdefault(row["query_id"], {})[row["doc_id"]] = row["score"]
    return found


@HERE
def test_a_search_is_its_stages_and_says_what_each_is_worth(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    qrels = write_text(tmp_path / "qrels.txt", "q0 0 d0 1\nq1 0 d1 1\n")
    assert main([*command, f"--qrels={qrels}"]) == 0
    found, known = scores_of(tmp_path / "out"), expected()
    for query in known:
        assert found[query] == pytest.approx(known[query], abs=1e-5)
    shown = capfd.readouterr().out
    assert re.search(r"documents +7 embedded \(0 with an error\)", shown)
    assert "6 rows retrieved" in shown
    assert "R@3" in shown and "nDCG@10" in shown
    assert set(load_run_from_scores(str(tmp_path / "out" / "reranked"))) == {"q0", "q1"}


@HERE
def test_a_finished_search_is_there_already_and_a_lost_stage_is_made_again(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    before = scores_of(tmp_path / "out")
    assert main(command) == 0
    assert "already finished" in capfd.readouterr().out
    (lost,) = (tmp_path / "out" / "reranked" / "scores").iterdir()
    lost.unlink()
    (tmp_path / "out" / "reranked" / "_SUCCESS").unlink()
    assert main(command) == 0
    assert scores_of(tmp_path / "out") == before


@HERE
def test_another_number_of_documents_wants_another_output(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert main([*command, "--top-k=2"]) == 2
    assert "was searched with --top-k 3, not 2: name another" in capfd.readouterr().err


@HERE
def test_kept_vectors_serve_another_search(command: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert main([*command, f"--vectors={kept}"]) == 0
    written = (kept / "manifest.json").read_text()
    other = [each for each in command if not each.startswith("--output")]
    assert main([*other, f"--vectors={kept}", f"--output={tmp_path / 'other'}", "--top-k=2"]) == 0
    assert (kept / "manifest.json").read_text() == written
    assert not (tmp_path / "other" / "vectors").exists()
    assert sum(len(each) for each in scores_of(tmp_path / "other").values()) == 4


@HERE
def test_each_models_own_instruction_is_its_stages(command: list[str], tmp_path: Path) -> None:
    own = ["--instruction=Rate it", "--query-instruction=Find it"]
    assert main([*command, *own]) == 0
    found = {}
    for stage in ("query-vectors", "vectors", "reranked"):
        manifest = json.loads((tmp_path / "out" / stage / "manifest.json").read_text())
        found[stage] = manifest["job"]["options"]["instruction"]
    assert (found["query-vectors"], found["reranked"]) == ("Find it", "Rate it")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"--corpus": None}, "--corpus is missing"),
        ({"--embedder": None}, "--embedder is missing"),
        ({"--top-k": "0"}, "--top-k must be above zero, got 0"),
        ({"--embedder": str(GOLDEN / "text-reranker" / "tiny-seq-cls")}, "of a Qwen3-Embedding"),
    ],
)
@HERE
def test_a_wrong_command_is_one_sentence(
    command: list[str], capfd: pytest.CaptureFixture[str], changed: dict[str, Any], sentence: str
) -> None:
    kept = [each for each in command if each.partition("=")[0] not in changed]
    given = [f"{name}={value}" for name, value in changed.items() if value is not None]
    assert main([*kept, *given]) == 2
    assert sentence in capfd.readouterr().err


def test_a_pipeline_recalls_and_reranks() -> None:
    pipeline = Pipeline(Embedder(str(EMBEDDER)), Reranker(str(RERANKER)))
    found = pipeline.search(QUERIES, CORPUS, top_k=3)
    for number, hits in enumerate(found):
        known = expected()[f"q{number}"]
        assert {f"d{hit.document}": hit.score for hit in hits} == pytest.approx(known, abs=1e-5)
        assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
    vectors = pipeline.embedder.embed(CORPUS)
    assert pipeline.search(QUERIES, CORPUS, 3, vectors=vectors) == found
    assert [len(hits) for hits in pipeline.search(QUERIES, CORPUS[:2])] == [2, 2]
    with pytest.raises(ValueError, match="vectors are 2 and documents 3"):
        pipeline.search(QUERIES, CORPUS[:3], vectors=vectors[:2])
