import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.manifest import Counts
from tests.support.job_cases import (
    image,
    plan_of,
    read_all,
    run_inline,
    score_rows,
    text_rows,
    write_sets,
    write_table,
    write_text,
)


def as_json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_ids(options: InputOptions | str) -> list[tuple[Any, list[Any]]]:
    return [(row.query_id, [each.doc_id for each in row.candidates]) for row in read_all(options)]


def write_corpus(directory: Path) -> tuple[str, str]:
    """(queries, corpus) with ids q0.. and d0.., the texts of `text_rows`."""
    queries = [{"query_id": f"q{i}", "query": f"query {i}"} for i in range(3)]
    documents = [{"doc_id": f"d{i}", "text": f"document {i}"} for i in range(4)]
    return (
        write_table(directory / "queries.parquet", queries),
        write_table(directory / "corpus.parquet", documents),
    )


# The three forms


def test_the_three_forms_give_equal_scores(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(3, 4))
    pairs = write_table(
        tmp_path / "pairs.parquet",
        [
            {"query_id": i, "doc_id": f"d{j}", "query": f"query {i}", "doc": f"document {j}"}
            | {"rank": j + 1}
            for j in range(4)
            for i in range(3)
        ],
    )
    run = InputOptions(
        run=write_text(
            tmp_path / "run.trec",
            "".join(f"{i} Q0 d{j} {j + 1} {9 - j} bm25\n" for i in range(3) for j in range(4)),
        ),
        queries=write_table(
            tmp_path / "queries.parquet",
            [{"query_id": i, "query": f"query {i}"} for i in (2, 0, 1)],
        ),
        corpus=write_table(
            tmp_path / "corpus.parquet",
            [{"doc_id": f"d{j}", "text": f"document {j}"} for j in (3, 1, 0, 2)],
        ),
    )
    results = []
    for name, options in (("a", sets), ("b", pairs), ("c", run)):
        run_inline(plan_of(options, 5), tmp_path / name)
        results.append(
            [
                (str(row["query_id"]), row["doc_id"], row["logit"], row["rank"])
                + (row["first_stage_rank"],)
                for row in score_rows(tmp_path / name)
            ]
        )
    assert len(results[0]) == 12
    assert results[0] == results[1] == results[2]


def test_a_run_names_unknown_ids_which_become_error_rows(tmp_path: Path) -> None:
    queries, corpus = write_corpus(tmp_path)
    run = write_table(
        tmp_path / "run.parquet",
        [
            {"query_id": q, "doc_id": d}
            for q, d in (("q0", "d0"), ("q0", "dx"), ("qx", "d0"), (None, "d1"), ("q1", None))
        ],
    )
    _, counts = run_inline(
        plan_of(InputOptions(run=run, queries=queries, corpus=corpus)), tmp_path / "out"
    )
    assert replace(counts, unit_hashes={}) == Counts(
        num_queries=4,
        num_pairs=5,
        num_failed=4,
        num_tokens=3,
        errors={"document_not_found": 1, "query_not_found": 1, "null_id": 2},
    )


def test_the_input_may_be_the_run_or_a_directory_of_all_three(tmp_path: Path) -> None:
    queries, corpus = write_corpus(tmp_path)
    run = write_table(tmp_path / "run.parquet", [{"query_id": "q2", "doc_id": "d1"}])
    expected = [("q2", ["d1"])]
    for preset in (None, "trec"):
        given = InputOptions(run, queries=queries, corpus=corpus, preset=preset)
        assert read_ids(given) == expected
    assert read_ids(str(tmp_path)) == expected
    Path(run).unlink()
    assert "--run" in refused(str(tmp_path))


# Presets


def test_preset_beir(tmp_path: Path) -> None:
    corpus = [
        {"_id": "d1", "title": "Title", "text": "and text"},
        {"_id": "d2", "title": "", "text": "ünï"},
        {"_id": "d3", "title": "only", "text": ""},
    ]
    write_text(tmp_path / "data" / "corpus.jsonl", as_json_lines(corpus))
    write_text(tmp_path / "data" / "queries.jsonl", as_json_lines([{"_id": "q", "text": "what"}]))
    write_text(tmp_path / "data" / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\td1\t1\n")
    run = write_text(
        tmp_path / "run.trec", "".join(f"q Q0 d{i} {i} {9 - i} bm25\n" for i in (3, 2, 1))
    )
    (query,) = read_all(InputOptions(str(tmp_path / "data"), run=run, preset="beir"))
    assert query.query == {"text": "what"}
    assert [each.document["text"] for each in query.candidates] == ["only", "ünï", "Title and text"]


def test_preset_mteb(tmp_path: Path) -> None:
    for name, rows in {
        "corpus": [{"id": "d1", "title": "t", "text": "x"}, {"id": "d2", "title": "", "text": "y"}],
        "queries": [{"id": "q1", "text": "what"}, {"id": "q2", "text": "who"}],
        "top_ranked": [
            {"query-id": "q2", "corpus-ids": ["d2", "d1"]},
            {"query-id": "q1", "corpus-ids": ["d1"]},
        ],
        "instruction": [{"query-id": "q2", "instruction": "find people"}],
    }.items():
        write_table(tmp_path / name / "test-00000-of-00001.parquet", rows)
    first, second = read_all(InputOptions(str(tmp_path), preset="mteb"))
    assert [(each.doc_id, each.rank) for each in first.candidates] == [("d2", 1), ("d1", 2)]
    assert first.query == {"text": "who"}
    assert (first.instruction, second.instruction) == ("find people", None)
    assert second.candidates[0].document == {"text": "t x"}


# Bad rows: an error of that row, nothing else


def test_bad_rows_are_errors_of_their_own_and_touch_nothing_else(tmp_path: Path) -> None:
    rows = text_rows(7, 3)
    rows[1]["candidates"][1]["doc"] = image(b"broken")
    rows[2]["candidates"] = []
    rows[3]["candidates"] = None
    rows[4]["candidates"][0]["doc_id"] = None
    rows[4]["candidates"][2]["doc_id"] = "d1"
    rows[5]["query_id"] = None
    rows[6]["query"] = None
    plan = plan_of(write_sets(tmp_path / "sets.parquet", rows), 4)
    run_inline(plan, tmp_path / "out")
    found, sentences = {}, {}
    for row in score_rows(tmp_path / "out"):
        found.setdefault(row["query_id"], []).append((row["doc_id"], row["error_code"]))
        sentences[row["error_code"]] = row["error"]
    d0, d1, d2 = ("d0", None), ("d1", None), ("d2", None)
    assert {query: sorted(pairs, key=str) for query, pairs in found.items()} == {
        0: [d0, d1, d2],
        1: [d0, ("d1", "image_decode"), d2],
        2: [(None, "empty_candidates")],
        3: [(None, "empty_candidates")],
        4: [("d1", "duplicate_id"), d1, (None, "null_id")],
        None: [("d0", "null_id"), ("d1", "null_id"), ("d2", "null_id")],
        6: [("d0", "empty_query"), ("d1", "empty_query"), ("d2", "empty_query")],
    }
    assert sentences["image_decode"] == "the image cannot be decoded"
    assert all(sentences[code] for code in sentences if code) and sentences[None] is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"query_id": 2, "max_length": -5}, "max_length must be above zero"),
        ({"doc_id": None}, "doc_id is null"),
    ],
)
def test_what_is_wrong_with_a_row_stands_in_its_sentence(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    row = {"query_id": 1, "doc_id": "1", "query": "q", "doc": "d", "max_length": None}
    path = write_table(tmp_path / "pairs.parquet", [row, row | changed])
    run_inline(plan_of(path), tmp_path / "out")
    (error,) = [row["error"] for row in score_rows(tmp_path / "out") if row["error"]]
    assert sentence in error


# Refusals: one sentence that names the place


def refused(options: InputOptions | str) -> str:
    with pytest.raises(UsageError) as error:
        plan_of(options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_id": 1, "query": "q"}, "no column 'candidates'"),
        ({"query": "q", "doc_id": 1, "doc": "d"}, "--map input.query_id=NAME"),
        ({"query_id": 1, "query": "q", "doc_id": 1}, "no column 'doc'"),
        ({"query_id": 1.5, "query": "q", "doc_id": 1, "doc": "d"}, "must be a string or an int"),
        ({"query_id": 1, "query": 7, "doc_id": 1, "doc": "d"}, "'query' must be a string"),
        ({"query_id": 1, "query": "q", "candidates": ["d"]}, "must be a list of structs"),
        (
            {"query_id": 1, "query": "q", "candidates": [{"doc_id": "d", "text": 3}]},
            "'candidates.text' must be a string",
        ),
        (
            {"query_id": 1, "query": "q", "doc_id": 1, "doc": "d", "fps": "fast"},
            "'fps' must be a number",
        ),
    ],
)
def test_a_missing_column_or_a_wrong_type_is_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    assert message in refused(write_table(tmp_path / "rows.parquet", [row]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (InputOptions(), "no input"),
        (InputOptions("x", preset="bier"), "unknown preset 'bier'"),
        (InputOptions("x", maps=("query_id=a",)), "--map must be TABLE.COLUMN=NAME"),
        (InputOptions("x", maps=("tables.a=b",)), "unknown table 'tables'"),
        (InputOptions("x", maps=("run.title=b",)), "unknown column 'title'"),
        (InputOptions("ftp://host/x"), "unknown scheme 'ftp'"),
        (InputOptions("/no/such/place"), "no Parquet or JSON lines files"),
        (InputOptions(run="r"), "--queries"),
    ],
)
def test_a_wrong_option_is_refused(options: InputOptions, message: str) -> None:
    assert message in refused(options)
