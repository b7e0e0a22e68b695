import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.manifest import Counts
from tests.support.job_cases import (
    candidate,
    image,
    plan_of,
    query_row,
    read_all,
    run_inline,
    score_rows,
    text,
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


def test_integer_ids_meet_a_text_run(tmp_path: Path) -> None:
    options = InputOptions(
        run=write_text(tmp_path / "run.trec", "7 Q0 42 1 0.5 bm25\n"),
        queries=write_table(tmp_path / "queries.parquet", [{"query_id": 7, "query": "q"}]),
        corpus=write_table(tmp_path / "corpus.parquet", [{"doc_id": 42, "text": "d"}]),
    )
    (query,) = read_all(options)
    assert query.query == "q"
    assert query.candidates[0].document == {"text": "d"}


def test_a_gzip_run_is_read(tmp_path: Path) -> None:
    queries, corpus = write_corpus(tmp_path)
    run = tmp_path / "run.txt.gz"
    run.write_bytes(gzip.compress(b"q1 Q0 d2 1 3.5 bm25\n"))
    (query,) = read_all(InputOptions(run=str(run), queries=queries, corpus=corpus))
    assert (query.query_id, query.candidates[0].doc_id) == ("q1", "d2")
    assert (query.candidates[0].rank, query.candidates[0].score) == (1, 3.5)


def test_the_input_may_be_the_run_or_a_directory_of_all_three(tmp_path: Path) -> None:
    queries, corpus = write_corpus(tmp_path)
    run = write_table(tmp_path / "run.parquet", [{"query_id": "q2", "doc_id": "d1"}])
    expected = [("q2", ["d1"])]
    assert read_ids(InputOptions(run, queries=queries, corpus=corpus)) == expected
    assert read_ids(str(tmp_path)) == expected


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    rows = [{"qid": 1, "pid": 2, "question": "q", "passage": "d"}]
    path = write_table(tmp_path / "pairs.parquet", rows)
    maps = ("query_id=qid", "doc_id=pid", "query=question", "doc=passage")
    (query,) = read_all(InputOptions(path, maps=tuple(f"input.{each}" for each in maps)))
    assert (query.query_id, query.candidates[0].doc_id) == (1, 2)


def test_options_and_instructions_of_a_query_are_read(tmp_path: Path) -> None:
    rows = [
        {"query_id": 1, "doc_id": 2, "query": "q", "doc": "d", "instruction": "find"}
        | {"max_frames": 8.0, "fps": 0.5}
    ]
    (query,) = read_all(write_table(tmp_path / "pairs.parquet", rows))
    assert (query.instruction, query.options.max_frames, query.options.fps) == ("find", 8, 0.5)


def test_an_id_that_the_corpus_has_twice_is_read_once_if_both_say_the_same(tmp_path: Path) -> None:
    queries, _ = write_corpus(tmp_path)
    corpus = write_table(tmp_path / "twice.parquet", [{"doc_id": "d", "text": "one"}] * 2)
    run = write_text(tmp_path / "run.trec", "q0 Q0 d 1 1 t\n")
    (query,) = read_all(InputOptions(run=run, queries=queries, corpus=corpus))
    assert query.candidates[0].document == {"text": "one"}


def test_a_file_of_many_row_groups_is_read_by_position(tmp_path: Path) -> None:
    documents = [{"doc_id": i, "text": f"document {i}"} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(documents), tmp_path / "corpus.parquet", row_group_size=7)
    queries = write_table(tmp_path / "queries.parquet", [{"query_id": "q", "query": "q"}])
    wanted = [93, 0, 6, 7, 50, 99, 7]
    run = write_table(tmp_path / "run.parquet", [{"query_id": "q", "doc_id": i} for i in wanted])
    (query,) = read_all(InputOptions(str(tmp_path), run=run, queries=queries))
    assert [each.document for each in query.candidates] == [
        {"text": f"document {i}"} for i in wanted
    ]


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


@pytest.mark.parametrize("preset", ["vidore", "jinavdr"])
def test_preset_of_page_images(tmp_path: Path, preset: str) -> None:
    page = {"bytes": b"png", "path": "page.png"}
    write_table(
        tmp_path / "corpus" / "test-0.parquet",
        [{"corpus-id": i, "image": page, "language": "en"} for i in range(3)],
    )
    write_table(tmp_path / "queries" / "test-0.parquet", [{"query-id": 5, "query": "what"}])
    write_table(
        tmp_path / "qrels" / "test-0.parquet", [{"query-id": 5, "corpus-id": 1, "score": 1}]
    )
    run = write_text(tmp_path / "run.trec", "5 Q0 2 1 1.0 t\n")
    (query,) = read_all(InputOptions(str(tmp_path), run=run, preset=preset))
    assert query.candidates[0].document == {"image": page}


def test_preset_msmarco(tmp_path: Path) -> None:
    path = write_text(tmp_path / "top1000.dev.tsv", "1\t10\tq one\td ten\n2\t10\tq two\td ten\n")
    first, second = read_all(InputOptions(path, preset="msmarco"))
    assert (first.query_id, first.query, first.candidates[0].document) == ("1", "q one", "d ten")
    assert second.query == "q two"


def test_preset_trec(tmp_path: Path) -> None:
    queries, corpus = write_corpus(tmp_path)
    run = write_text(tmp_path / "bm25.run", "q1 Q0 d2 1 3.5 bm25\n")
    options = InputOptions(run, queries=queries, corpus=corpus, preset="trec")
    assert read_ids(options) == [("q1", ["d2"])]


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
    found = {}
    for row in score_rows(tmp_path / "out"):
        found.setdefault(row["query_id"], []).append((row["doc_id"], row["error_code"]))
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


def test_a_querys_impossible_option_is_its_own_error(tmp_path: Path) -> None:
    rows = [
        {"query_id": i, "doc_id": 1, "query": "q", "doc": "d", "max_length": value}
        for i, value in enumerate([None, -5])
    ]
    run_inline(plan_of(write_table(tmp_path / "pairs.parquet", rows)), tmp_path / "out")
    first, second = score_rows(tmp_path / "out")
    assert first["error_code"] is None
    assert second["error_code"] == "invalid_content"
    assert "max_length must be above zero" in second["error"]


def test_every_error_row_has_a_sentence(tmp_path: Path) -> None:
    rows = [query_row(1, [candidate(None, text("x")), candidate("a", image(b"broken"))])]
    run_inline(plan_of(write_sets(tmp_path / "sets.parquet", rows)), tmp_path / "out")
    assert [row["error"] for row in score_rows(tmp_path / "out")] == [
        "doc_id is null",
        "the image cannot be decoded",
    ]


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


def test_queries_and_corpus_without_a_run_are_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert "--run" in refused(str(tmp_path))


def test_files_whose_columns_differ_are_refused(tmp_path: Path) -> None:
    row = {"query_id": 1, "doc_id": 1, "query": "q", "doc": "d"}
    write_table(tmp_path / "in" / "a.parquet", [row])
    write_table(tmp_path / "in" / "b.parquet", [{**row, "query_id": "1"}])
    assert "different types" in refused(str(tmp_path / "in"))
    del row["doc"]
    write_table(tmp_path / "in" / "b.parquet", [row])
    assert "no column 'doc' in" in refused(str(tmp_path / "in"))


def test_a_broken_run_line_is_refused_by_its_number(tmp_path: Path) -> None:
    queries, corpus = write_corpus(tmp_path)
    run = write_text(tmp_path / "run.trec", "q0 Q0 d0 1 0.5 t\nq0 d1 2\n")
    assert "line 2" in refused(InputOptions(run=run, queries=queries, corpus=corpus))


def test_a_file_that_is_not_parquet_is_refused_by_name(tmp_path: Path) -> None:
    path = write_text(tmp_path / "sets.parquet", "not parquet")
    assert "sets.parquet cannot be read as Parquet" in refused(path)


def test_a_broken_json_line_is_named_by_its_offset(tmp_path: Path) -> None:
    write_text(tmp_path / "corpus.jsonl", '{"_id": "a", "text": "b"}\n{oops\n')
    write_text(tmp_path / "queries.jsonl", '{"_id": "a", "text": "b"}\n')
    run = write_text(tmp_path / "run.trec", "a Q0 a 1 0.5 t\n")
    options = InputOptions(str(tmp_path), run=run, preset="beir")
    assert "corpus.jsonl, byte 26: not a JSON line" in refused(options)
