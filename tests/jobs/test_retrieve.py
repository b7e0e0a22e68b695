"""`shardrank retrieve`: exact and approximate search of vectors, and the run that it writes."""

import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from shardrank.actors.config import EmbeddingOptions, RerankerConfig
from shardrank.cli import main
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.inputs.joins import read_run
from shardrank.jobs.rerank import JobOptions, rerank
from shardrank.jobs.retrieve.retrieval import Retrieval, RetrievalOptions, retrieve
from shardrank.jobs.retrieve.search import search
from shardrank.jobs.retrieve.vectors import BLOCK_ROWS
from tests.jobs.test_embed import TEXT_MODEL, embed, texts
from tests.support.engine import GOLDEN
from tests.support.job_cases import score_rows, write_table

HERE = pytest.mark.usefixtures("without_ray")
TEXT_RERANKER = GOLDEN / "text-reranker" / "tiny-tied"
CORPUS = ["one", "two", "three", "four", "five"]


def drawn(num: int, dimensions: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, dimensions)).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(
    path: Path, vectors: Any, id_column: str = "doc_id", ids: Any = None, **settings: Any
) -> str:
    """vectors: a matrix, or an Arrow array of lists."""
    if isinstance(vectors, np.ndarray):
        flat = pa.array(vectors.ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    ids = pa.array([f"{id_column[0]}{i}" for i in range(len(vectors))] if ids is None else ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({id_column: ids, "embedding": vectors}), path, **settings)
    return str(path)


def found(folder: Path, **options: Any) -> tuple[Retrieval, list[dict[str, Any]]]:
    """What is said of, and in, the run of q.parquet over d.parquet of a folder."""
    names = {"queries": "q.parquet", "embeddings": "d.parquet", "output": "out/run.parquet"}
    places = {name: str(folder / file) for name, file in names.items()}
    done = retrieve(RetrievalOptions(**{**places, "num_threads": 2, **options}))
    return done, pq.read_table(done.output).to_pylist()


def brute(queries: np.ndarray, vectors: np.ndarray, top_k: int) -> np.ndarray:
    """Row numbers, best first and equal ones in their order."""
    scores = unit(queries.astype(np.float64)) @ unit(vectors.astype(np.float64)).T
    return np.argsort(-scores.round(6), axis=1, kind="stable")[:, :top_k]


@given(
    st.integers(0, 5),
    st.integers(0, 40),
    st.integers(1, 50),
    st.sampled_from([1, 2, 7, 40]),
    st.integers(0, 99),
)
def test_what_is_found_is_what_every_product_says(num_queries, num, top_k, num_different, seed):
    """Few different vectors, so that many scores are equal."""
    rng = np.random.default_rng(seed)
    vectors = drawn(num_different, 4, seed)[rng.integers(0, num_different, num)]
    queries = drawn(num_queries, 4, seed + 1)
    scores, rows = search(queries, vectors, top_k)
    assert scores.shape == rows.shape == (num_queries, top_k)
    kept = min(num, top_k)
    assert (rows[:, kept:] == -1).all() and np.isneginf(scores[:, kept:]).all()
    if num:
        np.testing.assert_array_equal(rows[:, :kept], brute(queries, vectors, top_k))
        expected = np.take_along_axis(unit(queries) @ unit(vectors).T, rows[:, :kept], 1)
        np.testing.assert_allclose(scores[:, :kept], expected, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 10, BLOCK_ROWS + 5])
def test_neither_blocks_nor_threads_change_what_is_found(top_k: int) -> None:
    vectors, queries = (
        drawn(2 * BLOCK_ROWS + 77, 24),
        drawn(1_100, 24, 1)[:: 1 if top_k == 10 else 60],
    )
    vectors[[BLOCK_ROWS - 1, BLOCK_ROWS + 3, len(vectors) - 1]] = vectors[5]
    scores, rows = search(queries, vectors, top_k, num_threads=3)
    others = search(queries, (vectors[i : i + 1_000] for i in range(0, len(vectors), 1_000)), top_k)
    np.testing.assert_array_equal(scores, others[0])
    np.testing.assert_array_equal(rows, others[1])
    best = -np.sort(-unit(queries[:50]) @ unit(vectors).T, axis=1)[:, :top_k]
    np.testing.assert_allclose(scores[:50], best, atol=1e-6)


def test_equal_vectors_have_equal_scores_wherever_they_are() -> None:
    vectors, queries = drawn(3 * BLOCK_ROWS + 1, 40), drawn(3, 40, 1)
    same = [0, 17, BLOCK_ROWS + 1, 3 * BLOCK_ROWS]
    vectors[same] = queries[0]
    scores, rows = search(queries, vectors, 4)
    assert rows[0].tolist() == same and len(set(scores[0].tolist())) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_a_vector_without_a_direction_is_refused_by_its_row(wrong: float) -> None:
    vectors, queries = drawn(5), drawn(2)
    vectors[3] = wrong
    with pytest.raises(ValueError, match="vector 3 has no direction"):
        search(queries, vectors, 2)
    with pytest.raises(ValueError, match="query 3 has no direction"):
        search(vectors, queries, 2)
    with pytest.raises(ValueError, match="8 dimensions, got a matrix of shape"):
        search(queries, drawn(3, 7), 2)


@pytest.mark.parametrize("ids", [[30, 4, 100, 7], ["b", "B", "é", "ab"]])
def test_equal_scores_go_by_the_value_of_the_id(tmp_path: Path, ids: list[Any]) -> None:
    write_vectors(tmp_path / "q.parquet", drawn(2), "query_id", [7, 5])
    write_vectors(tmp_path / "d.parquet", np.repeat(drawn(1), 4, 0), ids=ids, row_group_size=1)
    _, rows = found(tmp_path, top_k=3)
    expected = sorted(ids, key=lambda id_: id_ if isinstance(id_, int) else id_.encode())[:3]
    assert [(row["query_id"], row["rank"]) for row in rows] == [
        (q, r) for q in (7, 5) for r in (1, 2, 3)
    ]
    assert [row["doc_id"] for row in rows] == 2 * expected
    schema = pq.read_schema(tmp_path / "out" / "run.parquet")
    assert schema.names == ["query_id", "doc_id", "rank", "score"]
    assert (
        schema.field("score").type == pa.float32() and schema.field("query_id").type == pa.int64()
    )


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (pa.list_(pa.float16(), 8), 2e-3),
        (pa.list_(pa.float32()), 1e-6),
        (pa.large_list(pa.float64()), 1e-6),
    ],
)
def test_any_list_of_floats_is_read_as_float32(
    tmp_path: Path, kind: pa.DataType, error: float
) -> None:
    vectors, queries = drawn(50), drawn(3, seed=1)
    lists = pa.array(vectors.tolist(), pa.list_(kind.value_type)).cast(kind)
    write_vectors(tmp_path / "d.parquet", lists)
    write_vectors(tmp_path / "q.parquet", queries, "query_id")
    _, rows = found(tmp_path, top_k=50)
    scores = unit(queries) @ unit(vectors).T
    for row in rows:
        expected = scores[int(row["query_id"][1:]), int(row["doc_id"][1:])]
        assert row["score"] == pytest.approx(expected, abs=error)
    assert len(rows) == 150


def test_many_files_and_passes_give_what_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = drawn(9_000, 16), drawn(40, 16, 1)
    write_vectors(tmp_path / "d.parquet", vectors)
    write_vectors(tmp_path / "q.parquet", queries, "query_id")
    whole, expected = found(tmp_path)
    for number, first in enumerate(range(0, 9_000, 2_000)):
        ids = [f"d{i}" for i in range(first, min(first + 2_000, 9_000))]
        part = vectors[first : first + 2_000]
        write_vectors(tmp_path / "d" / f"{number}.parquet", part, ids=ids, row_group_size=700)
    monkeypatch.setattr("shardrank.jobs.retrieve.retrieval._PASS_QUERIES", 7)
    done, rows = found(tmp_path, embeddings=str(tmp_path / "d"))
    assert rows == expected and done.num_rows == whole.num_rows == 4_000
    assert done.vectors.num_vectors == 9_000 and done.queries.num_vectors == 40


@pytest.mark.usefixtures("ray_address")
def test_tasks_of_a_cluster_find_the_same(tmp_path: Path) -> None:
    vectors = drawn(9_000, 16)
    vectors[::900] = vectors[0]
    write_vectors(tmp_path / "d.parquet", vectors, row_group_size=500)
    write_vectors(tmp_path / "q.parquet", np.append(drawn(20, 16, 1), vectors[:1], 0), "query_id")
    here, expected = found(tmp_path)
    there, rows = found(tmp_path, address="auto")
    assert rows == expected and there.vectors.num_rows == here.vectors.num_rows == 9_000


def test_what_has_no_vector_is_skipped_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors: list[Any] = drawn(8).tolist()
    vectors[1], vectors[2], vectors[3] = None, [np.nan, *vectors[2][1:]], [0.0] * 8
    vectors[4] = [None, *vectors[4][1:]]
    ids = [*"abcdefg", None]
    table = {"doc_id": ids, "embedding": vectors, "error_code": [None, "image_decode", *[None] * 6]}
    pq.write_table(pa.table(table), tmp_path / "d.parquet")
    queries = [[0.0] * 8, drawn(1)[0].tolist(), [1.0] * 7]
    pq.write_table(pa.table({"query_id": [1, 2, 3], "embedding": queries}), tmp_path / "q.parquet")
    command = [
        "retrieve",
        f"--queries={tmp_path / 'q.parquet'}",
        "--output",
        str(tmp_path / "r.pq"),
    ]
    assert main([*command, f"--embeddings={tmp_path / 'd.parquet'}"]) == 0
    said = capsys.readouterr().out
    assert "1 (2 without a result)" in said and "3 (5 skipped)" in said
    for line in ("2 x not_finite: document 'c', 'e'", "1 x zero_vector: document 'd'"):
        assert line in said
    for line in ("1 x image_decode: document 'b'", "1 x null_id: document None"):
        assert line in said
    assert "1 x zero_vector: query 1" in said and "1 x wrong_length: query 3" in said
    rows = pq.read_table(tmp_path / "r.pq").to_pylist()
    assert {row["query_id"] for row in rows} == {2} and len(rows) == 3
    assert main([*command, f"--embeddings={tmp_path / 'd.parquet'}", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["vectors"]["skipped"]["not_finite"] == 2
    assert values["vectors"]["ids"]["image_decode"] == ["b"] and values["num_rows"] == 3


def test_an_id_with_two_vectors_is_refused(tmp_path: Path) -> None:
    write_vectors(tmp_path / "q.parquet", drawn(2), "query_id")
    write_vectors(tmp_path / "d.parquet", drawn(3), ids=["a", "b", "a"])
    with pytest.raises(JobError, match="--embeddings: 'a' has two vectors"):
        found(tmp_path)
    write_vectors(tmp_path / "q.parquet", drawn(2), "query_id", ["q", "q"])
    with pytest.raises(JobError, match="--queries: 'q' has two vectors"):
        found(tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_a_trec_run_is_read_as_the_table_is(tmp_path: Path) -> None:
    write_vectors(tmp_path / "q.parquet", drawn(3, seed=1), "query_id")
    write_vectors(tmp_path / "d.parquet", np.repeat(drawn(4), 2, 0))
    _, rows = found(tmp_path)
    options = {"queries": str(tmp_path / "q.parquet"), "embeddings": str(tmp_path / "d.parquet")}
    retrieve(RetrievalOptions(**options, output=str(tmp_path / "run.trec")))
    run = read_run(str(tmp_path / "run.trec"), {}).to_pylist()
    names = ("query_id", "doc_id", "rank")
    assert [[row[name] for name in names] for row in run] == [[r[n] for n in names] for r in rows]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_condition_leaves_the_documents_that_meet_it(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("duckdb")
    vectors = drawn(60)
    write_vectors(tmp_path / "q.parquet", drawn(2, seed=1), "query_id")
    write_vectors(tmp_path / "d.parquet", vectors, row_group_size=7)
    rows = [
        {"doc_id": f"d{i}", "doc": "x", "language": ["de", "en", None][i % 3]} for i in range(60)
    ]
    rows.append({"doc_id": "elsewhere", "doc": "x", "language": "de"})
    corpus = tmp_path / f"corpus.{ending}"
    if ending == "parquet":
        write_table(corpus, rows)
    else:
        corpus.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done, run = found(tmp_path, corpus=str(corpus), where="language = 'de'")
    assert (done.wanted, done.num_missing, done.vectors.num_vectors) == (21, 1, 20)
    expected = 3 * brute(drawn(2, seed=1), vectors[::3], 20)
    assert [row["doc_id"] for row in run] == [f"d{i}" for row in expected for i in row]
    with pytest.raises(UsageError, match="--where 'colour = 1': Binder Error.*colour"):
        found(tmp_path, corpus=str(corpus), where="colour = 1")


@pytest.mark.parametrize(
    "where", ["1=1; DROP TABLE x", "doc_id IN (SELECT content FROM read_text('/etc/passwd'))"]
)
def test_a_condition_is_a_condition_only(tmp_path: Path, where: str) -> None:
    pytest.importorskip("duckdb")
    write_vectors(tmp_path / "q.parquet", drawn(2), "query_id")
    write_vectors(tmp_path / "d.parquet", drawn(2))
    corpus = write_table(tmp_path / "corpus.parquet", [{"doc_id": "d0", "doc": "x"}])
    with pytest.raises(UsageError, match="--where"):
        found(tmp_path, corpus=corpus, where=where)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_index_finds_as_much_of_the_exact_result_as_was_asked(tmp_path: Path, kind: Any) -> None:
    pytest.importorskip("faiss")
    write_vectors(tmp_path / "q.parquet", drawn(30, 16, 1), "query_id")
    vectors = drawn(2_000, 16)
    vectors[7] = 0
    write_vectors(tmp_path / "d.parquet", vectors)
    _, exact = found(tmp_path, top_k=10)
    done, rows = found(tmp_path, top_k=10, index=kind, recall=0.9)
    pairs = [{(row["query_id"], row["doc_id"]) for row in each} for each in (exact, rows)]
    assert done.recall == len(pairs[0] & pairs[1]) / 300 and done.recall >= 0.9
    assert done.index == kind and done.vectors.skipped == {"zero_vector": 1}
    assert all(row["rank"] == i % 10 + 1 for i, row in enumerate(rows))


@HERE
def test_the_run_of_two_embed_jobs_goes_into_rerank(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = write_table(tmp_path / "corpus.parquet", [*texts(*CORPUS), *texts(" ", start=9)])
    rows = [{"query_id": i, "query": text} for i, text in enumerate(("three", "five"))]
    queries = write_table(tmp_path / "queries.parquet", rows)
    asked = EmbeddingOptions("query", precision="float16")
    embed(corpus, tmp_path / "d", job={"unit_pairs": 2})
    embed(queries, tmp_path / "q", embedding=asked, instruction="Find the number.")
    run = str(tmp_path / "run.parquet")
    command = ["retrieve", f"--queries={tmp_path / 'q'}", f"--embeddings={tmp_path / 'd'}"]
    capfd.readouterr()
    assert main([*command, "--output", run, "--top-k=4"]) == 0
    said = capfd.readouterr().out
    assert "Find the number." in said and "1 x empty_document: document 'd9'" in said
    options = InputOptions(run=run, queries=queries, corpus=corpus)
    config = RerankerConfig(str(TEXT_RERANKER), num_threads=1)
    rerank(JobOptions(str(tmp_path / "out"), options), config)
    first_stage = {(row["query_id"], row["doc_id"]): row for row in pq.read_table(run).to_pylist()}
    scored = score_rows(tmp_path / "out")
    assert len(scored) == len(first_stage) == 8
    for row in scored:
        before = first_stage[row["query_id"], row["doc_id"]]
        assert row["first_stage_rank"] == before["rank"] and row["error"] is None
        assert row["first_stage_score"] == before["score"]


@HERE
def test_vectors_and_run_may_lie_in_an_object_store(tmp_path: Path, s3_endpoint: str) -> None:
    embed(write_table(tmp_path / "corpus.parquet", texts(*CORPUS)), tmp_path / "d")
    write_vectors(tmp_path / "q.parquet", drawn(2, 64), "query_id")
    here, expected = found(tmp_path, embeddings=str(tmp_path / "d"))
    settings = f"?scheme=http&endpoint_override={urlsplit(s3_endpoint).netloc}"
    store, _ = fs.FileSystem.from_uri(f"s3://bucket/{settings}")
    fs.copy_files(str(tmp_path / "d"), "bucket/vectors", destination_filesystem=store)
    names = {"embeddings": "vectors", "output": "runs/run.parquet"}
    places = {name: f"s3://bucket/{path}{settings}" for name, path in names.items()}
    done = retrieve(RetrievalOptions(str(tmp_path / "q.parquet"), **places))
    assert (done.output, done.num_rows) == ("s3://bucket/runs/run.parquet", here.num_rows)
    assert pq.read_table("bucket/runs/run.parquet", filesystem=store).to_pylist() == expected


@HERE
def test_vectors_that_do_not_belong_together_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = write_table(tmp_path / "corpus.parquet", texts("one", "two"))
    queries = write_table(tmp_path / "queries.parquet", [{"query_id": "q", "query": "one"}])
    embed(corpus, tmp_path / "d")
    embed(queries, tmp_path / "q", embedding=EmbeddingOptions("query"))
    embed(queries, tmp_path / "short", embedding=EmbeddingOptions("query", 16))
    embed(
        queries, tmp_path / "other", embedding=EmbeddingOptions("query"), model=_another(tmp_path)
    )
    embed(corpus, tmp_path / "half")
    (tmp_path / "half" / "_SUCCESS").unlink()
    cases = [
        ("d", "d", "--queries .* has vectors of document texts: name what .*--as query` wrote"),
        ("q", "q", "--embeddings .* has vectors of query texts"),
        ("q", "half", "--embeddings .* is not complete, it has no _SUCCESS"),
        ("short", "d", "has vectors of 16 dimensions and --embeddings of 64"),
        ("other", "d", "another model than --embeddings: .*other-model .* and .*tiny"),
    ]
    for asked, searched, sentence in cases:
        places = {"queries": str(tmp_path / asked), "embeddings": str(tmp_path / searched)}
        with pytest.raises(UsageError, match=sentence):
            found(tmp_path, **places)
    assert not (tmp_path / "out").exists()


def _another(folder: Path) -> Path:
    """The same network with one weight changed."""
    from safetensors.numpy import load_file, save_file

    model = folder / "other-model"
    model.mkdir()
    for file in TEXT_MODEL.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (weights,) = model.glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if "norm" in name)
    save_file(tensors | {name: tensors[name] * 2}, weights, metadata={"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_k": 0}, "--top-k must be above zero, got 0"),
        ({"output": "run"}, "--output must end in .parquet, .trec or .txt, got run"),
        ({"where": "a = 1"}, "--where and --corpus go together"),
        ({"index": "ivf", "address": "auto"}, "leave --address out"),
        ({"recall": 1.5}, "--recall must be above 0 and at most 1, got 1.5"),
        ({"queries": "d.parquet"}, "no column 'query_id'"),
        ({"embeddings": "bare.parquet"}, "must have a column 'embedding' of lists of floats"),
        ({"embeddings": "wide.parquet"}, "8 dimensions and --embeddings of 9"),
        ({"output": "d.parquet"}, "is inside .*d.parquet: name another place"),
        ({"embeddings": "none.parquet"}, "no Parquet or JSON lines files at"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    write_vectors(tmp_path / "q.parquet", drawn(2), "query_id")
    write_vectors(tmp_path / "d.parquet", drawn(2))
    write_vectors(tmp_path / "wide.parquet", drawn(2, 9))
    write_table(tmp_path / "bare.parquet", [{"doc_id": "a", "text": "b"}])
    names = ("queries", "embeddings", "output")
    there = {
        n: str(tmp_path / v) if n in names and "." in v else v for n, v in options.items() if v
    }
    with pytest.raises(UsageError, match=sentence):
        found(tmp_path, **{**options, **there})


@pytest.mark.parametrize(("option", "package"), [("where", "duckdb"), ("index", "faiss")])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, package: str
) -> None:
    write_vectors(tmp_path / "q.parquet", drawn(2), "query_id")
    write_vectors(tmp_path / "d.parquet", drawn(2))
    given = {"index": "ivf"} if option == "index" else {"where": "1", "corpus": "c.parquet"}
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UsageError, match=rf"--{option} needs the package {package}: pip install"):
        found(tmp_path, **given)


def test_what_cannot_be_read_ends_the_search_and_leaves_no_run(tmp_path: Path) -> None:
    write_vectors(tmp_path / "q.parquet", drawn(2), "query_id")
    path = Path(write_vectors(tmp_path / "d.parquet", drawn(3_000), row_group_size=100))
    content = bytearray(path.read_bytes())
    content[2_000:40_000] = bytes(38_000)
    path.write_bytes(bytes(content))
    before = threading.active_count()
    with pytest.raises(JobError, match="d.parquet cannot be read as Parquet"):
        found(tmp_path)
    assert threading.active_count() == before and not (tmp_path / "out" / "run.parquet").exists()
