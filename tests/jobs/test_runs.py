"""Run files as they are written: 3 to 7 columns, tabs or spaces, ties, and what is refused."""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardrank.jobs.errors import UsageError
from shardrank.jobs.evaluate.measures import first_stage_run, load_scores
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.inputs.joins import read_run
from shardrank.jobs.units.contents import settled_ranks
from tests.support.job_cases import (
    plan_of,
    query_row,
    read_all,
    run_inline,
    write_table,
    write_text,
)

EXPECTED = [("q1", "a", 1, 9.5), ("q1", "b", 2, 8.5), ("q2", "a", 1, 7.0)]


def rows_of(path: Path | str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in read_run(str(path), {}).to_pylist()]


def lines_of(form: str, separator: str = " ") -> str:
    """EXPECTED in lines such as `q Q0 d r s tag`."""
    lines = []
    for query_id, doc_id, rank, score in EXPECTED:
        values = {"q": query_id, "d": doc_id, "r": rank, "r.": f"{rank}.0", "s": score}
        lines.append(separator.join(str(values.get(each, each)) for each in form.split()))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("separator", [" ", "\t", "  "])
@pytest.mark.parametrize(
    "form",
    [
        "q Q0 d r s tag",
        "q 0 d r s tag",
        "q Q0 d r. s tag",
        "q Q0 d r s",
        "q Q0 d r s my tag",
        "q d r s",
        "q d r s colbert",
    ],
)
def test_runs_with_rank_and_score_are_read(tmp_path: Path, form: str, separator: str) -> None:
    assert rows_of(write_text(tmp_path / "run", lines_of(form, separator))) == EXPECTED


@pytest.mark.parametrize("name", ["run.trec.gz", "run.gz", "scores.txt.gz"])
def test_compressed_runs_and_folders_of_runs_of_any_name_are_read(
    tmp_path: Path, name: str
) -> None:
    first, rest = lines_of("q Q0 d r s tag").split("\n", 1)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"a.{name}").write_bytes(gzip.compress(f"{first}\n".encode()))
    write_text(tmp_path / "runs" / "b.bm25", rest)
    write_text(tmp_path / "runs" / "c.empty", "")
    assert rows_of(tmp_path / "runs") == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("ranks.tsv", lines_of("q d r", "\t"), [(*row[:3], None) for row in EXPECTED]),
        ("scores.tsv", lines_of("q d s", "\t"), [(*row[:2], None, row[3]) for row in EXPECTED]),
        ("a.tsv", "score\tdocno\tqid\trank\n" + lines_of("s d q r", "\t"), EXPECTED),
        ("run", "\ufeff" + lines_of("q Q0 d r s t"), EXPECTED),
        ("run.jsonl", '{"query_id": "q", "doc_id": "d", "rank": 3}\n', [("q", "d", 3)]),
        ("run", "q\tQ0\td\t1\t0.5\tt\nq\tQ0\td 2\t2\t0.4\tt\n", [("q", "d"), ("q", "d 2")]),
        (
            "run",
            "q Q0 d\u00a01 2 0.5\nq Q0 e\u30001 1 0.7\n",
            [("q", "d\u00a01", 2, 0.5), ("q", "e\u30001", 1, 0.7)],
        ),
    ],
)
def test_columns_are_told_by_values_headers_and_ascii_white_space(
    tmp_path: Path, name: str, content: str, expected: list[tuple[Any, ...]]
) -> None:
    found = rows_of(write_text(tmp_path / name, content))
    assert [row[: len(expected[0])] for row in found] == expected


REFUSED = {
    "q Q0 a 1 0.5 t\nq b 2 0.4\n": "line 2: expected 6 columns as in the first line, got 4",
    "q Q0 doc 1 1 0.5 t\n": "line 1: 'q Q0 doc 1 1 0.5 t' has 7 columns",
    "q\tdoc 1\t5\n": "has 4 columns by any white space and 3 by tabs, and both could be",
    "q Q0 a 1.5 0.5 t\n": "line 1: column 4 is the rank and must be a whole number, got '1.5'",
    "q Q0 a 1 0.5 t\nq Q0 b 2 x t\n": "line 2: 'x' in column 5 is not a number",
    "q Q0 a 1\nq Q0 b 0\n": "line 1: 'q Q0 a 1' has 4 columns; what is read is `query_id Q0",
    "1 0 77 1\n1 0 78 0\n": "the second of 4 columns is Q0 or 0 in every line up to this, as in q",
    "1 0 77 1 9.5\n1 5 78 2 9.4\n": "line 2: the second column is '5', and Q0 or 0 before",
    "q a 27\nq b 25\n": "line 2: the third of 3 columns falls from 27 to 25 in query 'q'",
    "q a\n": "line 1: 'q a' has 2 columns",
    '{"q": {"a": 1.0}}\n': "is JSON; what is read is",
    "\n \n": "is empty: it names no pair",
    "": "is empty: it names no pair",
}


@pytest.mark.parametrize("content", REFUSED)
def test_what_cannot_be_told_apart_is_refused_with_what_was_seen(
    tmp_path: Path, content: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(REFUSED[content])) as error:
        rows_of(write_text(tmp_path / "run.txt", content))
    assert "\n" not in str(error.value) and "run" in str(error.value)


def test_a_folder_with_runs_of_two_splits_is_refused(tmp_path: Path) -> None:
    for split in ("dev", "test"):
        write_text(tmp_path / "runs" / f"run.{split}.txt", lines_of("q Q0 d r s t"))
    with pytest.raises(UsageError, match="holds the splits dev, test"):
        rows_of(tmp_path / "runs")


def test_a_list_that_is_empty_or_null_is_one_row_with_its_error(tmp_path: Path) -> None:
    lists = (["a", "b"], [], None)
    options = InputOptions(
        run=write_table(
            tmp_path / "run.parquet",
            [{"query_id": f"q{i}", "doc_ids": each} for i, each in enumerate(lists)],
        ),
        queries=write_table(
            tmp_path / "queries.parquet", [{"query_id": f"q{i}", "query": "q"} for i in range(3)]
        ),
        corpus=write_table(
            tmp_path / "corpus.parquet", [{"doc_id": each, "text": each} for each in "ab"]
        ),
    )
    _, counts = run_inline(plan_of(options), tmp_path / "query")
    assert (counts.num_pairs, counts.errors) == (4, {"empty_candidates": 2})
    assert [each.query_id for each in read_all(options)] == ["q0", "q1", "q2"]
    _, counts = run_inline(plan_of(options, order="document"), tmp_path / "document")
    assert (counts.num_pairs, counts.errors) == (4, {"empty_candidates": 2})


# The first stage's order


def first_stage(options: InputOptions | str, directory: Path) -> dict[str, list[str]]:
    run_inline(plan_of(options), directory)
    run = first_stage_run(load_scores(str(directory)))
    assert run is not None
    return {query_id: list(documents) for query_id, documents in run.items()}


@pytest.mark.parametrize(
    ("form", "order"),
    [
        ("q1 Q0 {d} 0 {s} t", "bdca"),
        ("q1 Q0 {d} 0 1 t", "abcd"),
        ("q1 {d} {s}", "bdca"),
        ("q1 {d} 1", "abcd"),
    ],
)
def test_tied_ranks_fall_back_to_the_score_and_then_to_the_input(
    tmp_path: Path, form: str, order: str
) -> None:
    lines = (form.format(d=d, s=s) for d, s in zip("abcd", (5.5, 9.0, 7.0, 8.0), strict=True))
    options = InputOptions(
        run=write_text(tmp_path / "run", "\n".join(lines)),
        queries=write_table(tmp_path / "queries.parquet", [{"query_id": "q1", "query": "q"}]),
        corpus=write_table(
            tmp_path / "corpus.parquet", [{"doc_id": each, "text": each} for each in "abcd"]
        ),
    )
    assert first_stage(options, tmp_path / "out") == {"q1": list(order)}


def test_ranks_with_a_fraction_keep_their_order(tmp_path: Path) -> None:
    ranked = list(zip("abc", (1.7, 1.5, 2.0), (9.0, 5.0, 7.0), strict=True))
    pairs = [
        {"query_id": 1, "query": "q", "doc_id": d, "doc": d, "rank": rank, "score": score}
        for d, rank, score in ranked
    ]
    sets = [{"doc_id": d, "doc": d, "rank": rank, "score": score} for d, rank, score in ranked]
    for name, rows in {"pairs": pairs, "sets": [query_row(1, sets)]}.items():
        path = write_table(tmp_path / f"{name}.parquet", rows)
        found = {each.doc_id: each.rank for each in read_all(path)[0].candidates}
        assert found == {"a": 2, "b": 1, "c": 3}, name


RANKED = st.tuples(
    st.integers(0, 3), st.none() | st.integers(0, 4), st.none() | st.integers(0, 3).map(float)
)


@given(st.lists(RANKED, max_size=30))
def test_settled_ranks_are_the_order_by_rank_score_and_input(rows: list[tuple]) -> None:
    queries = np.array([query for query, _, _ in rows], np.int64)
    ranks = np.array([rank for _, rank, _ in rows], np.float64)
    scores = np.array([score for _, _, score in rows], np.float64)
    settled = settled_ranks(queries, ranks, scores)
    for query in set(queries.tolist()):
        mine = [i for i, row in enumerate(rows) if row[0] == query]
        given_ranks = [rows[i][1] for i in mine if rows[i][1] is not None]
        if not given_ranks:
            mine = mine if all(rows[i][2] is not None for i in mine) else []
        elif len(set(given_ranks)) == len(given_ranks):
            assert np.array_equal(settled[mine], ranks[mine], equal_nan=True)
            continue
        else:
            mine = [i for i in mine if rows[i][1] is not None]
        expected = sorted(
            mine,
            key=lambda i: (rows[i][1] or 0, -rows[i][2] if rows[i][2] is not None else np.inf, i),
        )
        assert settled[expected].tolist() == [*range(1, len(expected) + 1)]
