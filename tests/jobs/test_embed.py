"""`shardrank embed`: the job over texts, whose results are vectors."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardrank.actors.config import EmbeddingOptions, RerankerConfig
from shardrank.cli import main
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.rerank import JobOptions, Summary, rerank
from tests.actors.test_families import EMBEDDED, TEXTS
from tests.support.engine import GOLDEN, TINY
from tests.support.job_cases import write_table, write_text

HERE = pytest.mark.usefixtures("without_ray")
TEXT_MODEL = GOLDEN / "text-embedding" / "tiny"
OFFICIAL = {"special_tokens": "official", "empty": "official", "image_depth": "official"}


def embed(
    input: Path | str,
    output: Path,
    model: Path = TEXT_MODEL,
    embedding: EmbeddingOptions | None = None,
    job: dict[str, Any] | None = None,
    **settings: Any,
) -> Summary:
    embedding = embedding or EmbeddingOptions()
    config = RerankerConfig(str(model), embedding=embedding, num_threads=1, **settings)
    options = InputOptions(str(input), embeds=embedding.role)
    return rerank(JobOptions(str(output), options, **(job or {})), config)


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "embeddings").to_pylist()


def rows_by_file(output: Path) -> dict[str, Any]:
    files = (output / "embeddings").iterdir()
    return {file.name: pq.read_table(file).to_pylist() for file in files}


def texts(*values: str, start: int = 0) -> list[dict[str, Any]]:
    return [{"doc_id": f"d{start + i}", "text": value} for i, value in enumerate(values)]


@pytest.mark.usefixtures("ray_address")
def test_a_corpus_of_all_media_becomes_the_official_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {case["id"]: case for case in EMBEDDED if case["kind"] in ("image", "mixed", "text")}
    wanted = {name: case for name, case in wanted.items() if "tokenizer" not in case}
    rows = [
        {"doc_id": name, "text": None, "image": None}
        | {key: case["input"].get(key) for key in ("text", "image")}
        for name, case in wanted.items()
        if set(case["input"]) <= {"text", "image"}
    ]
    corpus, out = write_table(tmp_path / "corpus.parquet", rows, 4), tmp_path / "out"
    command = ["embed", corpus, "--output", str(out), "--model", str(TINY), "--unit-texts=4"]
    assert main([*command, f"--media-root={GOLDEN}", "--address", "auto"]) == 0
    assert re.search(rf"texts +{len(rows)} \(0 with an error\)", capsys.readouterr().out)
    found = rows_of(out)
    assert {row["doc_id"] for row in found} == {row["doc_id"] for row in rows}
    for row in found:
        expected = wanted[row["doc_id"]]["official"]["embedding"]
        np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)
    schema = pq.read_table(out / "embeddings").schema
    assert schema.field("embedding").type == pa.list_(pa.float32(), 64)
    assert main(["verify", str(out)]) == 0
    assert f"{len(rows)} texts: each has exactly one row" in capsys.readouterr().out


@HERE
def test_queries_have_their_instruction_and_documents_none(tmp_path: Path) -> None:
    asked = [case for case in TEXTS if case["kind"] == "query"]
    rows = [
        {"query_id": case["id"], "query": case["text"], "instruction": case.get("instruction")}
        for case in asked
    ]
    queries = write_table(tmp_path / "queries.parquet", rows)
    embed(queries, tmp_path / "q", embedding=EmbeddingOptions("query"), **OFFICIAL)
    documents = [case for case in TEXTS if case["kind"] == "document"]
    lines = "".join(
        f"{json.dumps({'doc_id': case['id'], 'text': case['text']})}\n" for case in documents
    )
    embed(write_text(tmp_path / "corpus.jsonl", lines), tmp_path / "d", **OFFICIAL)
    found = {row["query_id"]: row for row in rows_of(tmp_path / "q")}
    found |= {row["doc_id"]: row for row in rows_of(tmp_path / "d")}
    assert len(found) == len(asked) + len(documents)
    for case in asked + documents:
        expected = case["official"]["embedding"]
        np.testing.assert_allclose(found[case["id"]]["embedding"], expected, atol=1e-5)


@HERE
def test_the_manifest_says_what_the_vectors_are_and_they_are_so(tmp_path: Path) -> None:
    corpus = write_table(tmp_path / "corpus.parquet", texts("one", "two"))
    embedding = EmbeddingOptions("document", 16, "float16")
    embed(corpus, tmp_path / "out", embedding=embedding, instruction="unused")
    job = json.loads((tmp_path / "out" / "manifest.json").read_text())["job"]
    assert job["options"]["embedding"] == {
        "role": "document",
        "dimensions": 16,
        "precision": "float16",
    }
    assert job["options"]["instruction"] == "unused"
    assert set(job["model"]) == {"settings", "weights"}
    table = pq.read_table(tmp_path / "out" / "embeddings")
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 16)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    embed(corpus, tmp_path / "whole")
    job = json.loads((tmp_path / "whole" / "manifest.json").read_text())["job"]
    assert job["options"]["embedding"]["dimensions"] == 64


@HERE
def test_what_is_wrong_with_a_text_is_its_own_error(tmp_path: Path) -> None:
    rows = [*texts("one", " ", "three"), {"doc_id": None, "text": "x"}, *texts("again")]
    rows = [row | {"image": b"broken" if row["text"] == "three" else None} for row in rows]
    embed(write_table(tmp_path / "corpus.parquet", rows), tmp_path / "out", TINY)
    found = [(row["doc_id"], row["error_code"], row["error"]) for row in rows_of(tmp_path / "out")]
    assert found == [
        ("d0", None, None),
        ("d0", "duplicate_id", "doc_id 'd0' appears before"),
        ("d1", "empty_document", "doc says nothing: it has only blanks"),
        ("d2", "image_decode", found[3][2]),
        (None, "null_id", "doc_id is null"),
    ]
    assert [row["embedding"] is None for row in rows_of(tmp_path / "out")] == [False] + [True] * 4
    counts = verify_output(str(tmp_path / "out"))
    assert (counts.num_pairs, counts.num_failed) == (5, 4)


@HERE
def test_an_image_is_an_error_where_the_model_reads_texts(tmp_path: Path) -> None:
    rows = [
        {"doc_id": f"d{i}", "text": "one", "image": image} for i, image in enumerate((None, b"i"))
    ]
    embed(write_table(tmp_path / "corpus.parquet", rows), tmp_path / "out")
    (_, row) = rows_of(tmp_path / "out")
    assert row["error"] == "doc has an image or a video: Qwen3-Embedding reads texts"


@HERE
def test_a_stopped_job_goes_on_and_one_that_grew_embeds_what_is_new(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    write_table(corpus / "a.parquet", texts("one", "two", "three"), 1)
    job = {"unit_pairs": 1}
    embed(corpus, out, job=job)
    before = rows_by_file(out)
    (out / "embeddings" / "part-000001.parquet").unlink()
    assert not embed(corpus, out, job=job).was_finished
    assert rows_by_file(out) == before
    write_table(corpus / "b.parquet", texts("four", start=3))
    with pytest.raises(UsageError, match="another input"):
        embed(corpus, out, job=job)
    embed(corpus, out, job=job | {"add_new": True})
    after = rows_by_file(out)
    assert {name: after[name] for name in before} == before
    assert sorted(row["doc_id"] for row in rows_of(out)) == ["d0", "d1", "d2", "d3"]
    with pytest.raises(UsageError, match="options.embedding.dimensions was 64 and is now 8"):
        embed(corpus, out, embedding=EmbeddingOptions(dimensions=8), job=job)


@HERE
def test_a_data_sets_directory_has_its_corpus_and_its_queries(tmp_path: Path) -> None:
    lines = '{"_id": "1", "title": "t", "text": "x"}\n'
    write_text(tmp_path / "set" / "corpus.jsonl", lines)
    write_text(tmp_path / "set" / "queries.jsonl", '{"_id": "q", "text": "what"}\n')
    for role, name in (("document", "doc_id"), ("query", "query_id")):
        options = InputOptions(str(tmp_path / "set"), preset="beir", embeds=role)
        config = RerankerConfig(str(TEXT_MODEL), embedding=EmbeddingOptions(role), num_threads=1)
        rerank(JobOptions(str(tmp_path / role), options), config)
        assert list(rows_of(tmp_path / role)[0])[:2] == [name, "embedding"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--model is missing"),
        ([f"--model={TEXT_MODEL}", "--dimensions=65"], "have 64, not 65"),
        ([f"--model={TEXT_MODEL}", "--dimensions=0"], "dimensions must be above zero, got 0"),
        (
            [f"--model={GOLDEN / 'text-reranker' / 'tiny-seq-cls'}"],
            "architecture Qwen3ForSequenceClassification: of a Qwen3-Embedding only",
        ),
        ([f"--model={TEXT_MODEL}", "--as=query"], "queries: no column 'query_id' in "),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    corpus = write_table(tmp_path / "corpus.parquet", texts("one"))
    assert main(["embed", corpus, f"--output={tmp_path / 'out'}", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@HERE
def test_vectors_are_not_scored_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    embed(write_table(tmp_path / "corpus.parquet", texts("one")), tmp_path / "out")
    assert main(["verify", str(tmp_path / "out"), "--rescore=1%"]) == 2
    assert "holds vectors, which have no scores" in capfd.readouterr().err
