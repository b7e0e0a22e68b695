"""The embedded demo: what the committed model reaches on the committed set, and what ships with it.

The floors lie 0.05 under what these queries give in float32, which is the same on every machine but
for rounding: an engine or a model that got worse falls under them. The model card has figures.
"""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shardrank.actors import Reranker, RerankerConfig
from shardrank.actors.data import CandidateSet
from shardrank.jobs.evaluate.measures import evaluate_run
from shardrank.jobs.evaluate.qrels import load_qrels
from shardrank.jobs.units.contents import document_value, query_value
from shardrank.serve.playground import ExampleContent, guide_of

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
SET = DEMO / "data" / "set"
MODEL = DEMO / "model"
FLOORS = {
    "text-to-image": 0.79,
    "image-to-text": 0.83,
    "image-to-image": 0.76,
    "text-to-text": 0.95,
    "text-to-mixed": 0.89,
    "text-to-video": 0.72,
}
NUM_QUERIES = 24  # of each task


def rows(name: str) -> list[dict[str, Any]]:
    return pq.read_table(SET / f"{name}.parquet").to_pylist()


def some_queries(number: int) -> Iterator[dict[str, Any]]:
    """The first `number` queries of each task."""
    for task in FLOORS:
        yield from islice((row for row in rows("queries") if row["task"] == task), number)


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker(RerankerConfig(model=str(MODEL), device="cpu", num_threads=1))


@pytest.fixture(scope="module")
def reranked(reranker) -> dict[str, dict[str, dict[str, float]]]:
    """task -> run, by the engine alone."""
    documents = {row["doc_id"]: document_value(row) for row in rows("corpus")}
    candidates: dict[str, list[str]] = {}
    for row in rows("run"):
        candidates.setdefault(row["query_id"], []).append(row["doc_id"])
    queries = list(some_queries(NUM_QUERIES))
    sets = [
        CandidateSet.parse(query_value(row), [documents[d] for d in candidates[row["query_id"]]])
        for row in queries
    ]
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for row, scores in zip(queries, reranker.score_sets(sets), strict=True):
        assert all(pair.error is None for pair in scores)
        logits = [pair.logit for pair in scores if pair.logit is not None]
        run = dict(zip(candidates[row["query_id"]], logits, strict=True))
        runs.setdefault(row["task"], {})[row["query_id"]] = run
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("task", FLOORS)
def test_the_committed_model_really_ranks(task, reranked):
    qrels = load_qrels(str(SET / "qrels.parquet"))
    assert len(reranked[task]) == NUM_QUERIES
    assert evaluate_run(reranked[task], qrels, ["nDCG@10"])["nDCG@10"] >= FLOORS[task]


def test_the_playgrounds_examples_are_what_the_model_can_do(reranker):
    found = {}
    for example in guide_of(MODEL).examples:
        query, *documents = (side(each) for each in (example.query, *example.documents))
        scores = reranker.score(query, documents)
        best = sorted(zip(scores, example.documents, strict=True), key=lambda pair: -pair[0])
        found[example.name] = [each.text or each.file for _, each in best[:2]]
    assert found == {
        "Names": ["велосипед", "自行车"],
        "Pictures": ["rainbow.png", "umbrella.png"],
        "Picture as query": ["гитара", "guitar.png"],
    }


def side(content: ExampleContent) -> dict[str, Any]:
    image = base64.b64decode((content.image or "").partition(",")[2])
    return {"text": content.text or None, "image": image or None}


def test_the_first_stage_is_no_better_than_chance():
    qrels = load_qrels(str(SET / "qrels.parquet"))
    run: dict[str, dict[str, float]] = {}
    for row in rows("run"):
        run.setdefault(row["query_id"], {})[row["doc_id"]] = -row["rank"]
    assert 0.15 < evaluate_run(run, qrels, ["nDCG@10"])["nDCG@10"] < 0.30


def test_the_set_has_every_form_and_enough_languages():
    queries, corpus = rows("queries"), rows("corpus")
    assert {row["task"] for row in queries} == set(FLOORS)
    assert len({row["language"] for row in queries} - {None}) >= 16
    assert 64 <= len({row["object"] for row in corpus}) <= 128
    assert all(any(row[form] for row in corpus) for form in ("text", "image", "video"))


def test_every_candidate_and_judgement_is_in_the_set():
    queries = {row["query_id"] for row in rows("queries")}
    documents = {row["doc_id"] for row in rows("corpus")}
    for name in ("run", "qrels"):
        assert {row["query_id"] for row in rows(name)} == queries
        assert {row["doc_id"] for row in rows(name)} <= documents


def test_the_weights_are_bf16_and_of_ten_megabytes_at_most():
    weights = list(MODEL.glob("*.safetensors"))
    assert weights and sum(file.stat().st_size for file in weights) <= 10_000_000
    with weights[0].open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    assert {each["dtype"] for name, each in header.items() if name != "__metadata__"} == {"BF16"}


def attributed() -> dict[str, str]:
    """design -> its line of the attribution's table."""
    text = (DEMO / "ATTRIBUTION.md").read_text("utf-8")
    lines = (line for line in text.splitlines() if re.match(r"\| `[a-z0-9-]+` \|", line))
    return {line.split("`")[1]: line for line in lines}


def test_every_design_in_the_data_is_attributed_under_a_licence_without_share_alike():
    designs = set(pq.read_table(DEMO / "data" / "renderings.parquet")["design"].to_pylist())
    lines = attributed()
    assert designs == set(lines)
    for design, line in lines.items():
        assert re.search(r"Apache-2\.0|MIT|CC BY 4\.0", line), design
        assert not re.search(r"BY-SA|share.?alike|GPL", line, re.IGNORECASE), design


@pytest.mark.slow
def test_the_demo_runs_the_job_and_shows_before_and_after(tmp_path):
    """On two queries of each task, so that it is short."""
    few = {row["query_id"] for row in some_queries(2)}
    part = tmp_path / "set"
    part.mkdir()
    for name in ("queries", "run", "qrels", "corpus"):
        table = pq.read_table(SET / f"{name}.parquet")
        keep = [name == "corpus" or query in few for query in table[0].to_pylist()]
        pq.write_table(table.filter(keep), part / f"{name}.parquet")
    command = [
        sys.executable,
        "-m",
        "demo.run",
        "--set",
        str(part),
        "--output",
        str(tmp_path / "o"),
    ]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "nDCG@10 by task" in shown.stdout and "nDCG@10 by language" in shown.stdout
    assert shown.stdout.count("first stage had") == len(FLOORS)
    assert "12 queries measured" in shown.stdout and "240 pairs, 0 failed" in shown.stdout
    assert shown.stdout.rstrip().endswith("report.html")
    assert "data:image/webp" in (tmp_path / "o" / "report.html").read_text("utf-8")
