import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.jobs.errors import JobError
from shardrank.jobs.outputs.done import unit_files
from shardrank.jobs.outputs.files import (
    SCORES,
    Output,
    UnitCollector,
    read_scores,
    trec_lines,
    write_trec_run,
    write_unit,
)
from shardrank.jobs.outputs.scores import names, ranked, with_figures
from shardrank.jobs.storage import Location
from tests.support import job_cases
from tests.support.job_cases import (
    candidate,
    image,
    plan_of,
    query_row,
    run_inline,
    score_rows,
    text,
    text_rows,
    write_sets,
)


def rows_to_rank(logits: list[float | None], first_stage: list[int | None]) -> pa.Table:
    size = len(logits)
    return pa.table(
        {
            "query_index": pa.array([0] * size, pa.int32()),
            "doc_index": pa.array(range(size), pa.int32()),
            "logit": pa.array(logits, pa.float32()),
            "first_stage_rank": pa.array(first_stage, pa.int32()),
        }
    )


def test_equal_logits_keep_the_first_stages_order_and_then_the_inputs() -> None:
    rows = ranked(rows_to_rank([1.0, 2.0, 1.0, 1.0, None], [9, 8, None, 2, 1]))
    assert rows["doc_index"].to_pylist() == [1, 3, 0, 2, 4]
    assert rows["rank"].to_pylist() == [1, 2, 3, 4, None]


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), min_size=1, max_size=30))
def test_trec_scores_strictly_decrease(logits: list[float | None]) -> None:
    rows = ranked(rows_to_rank(logits, [None] * len(logits)))
    rows = rows.append_column("query_id", rows["query_index"])
    lines = list(trec_lines(rows.append_column("doc_id", rows["doc_index"]), "tag"))
    scores = [np.float32(line.split()[4]) for line in lines]
    assert len(lines) == len(logits) - logits.count(None)
    assert all(after < before for before, after in zip(scores, scores[1:], strict=False))


def test_a_trec_run_has_every_scored_pair_under_its_ids(tmp_path: Path) -> None:
    rows = text_rows(3, 4)
    rows[1]["candidates"][2]["doc"] = image(b"broken")
    plan = plan_of(write_sets(tmp_path / "sets.parquet", rows), 5)
    output, _ = run_inline(plan, tmp_path / "out")
    place = write_trec_run(output, plan.units)
    lines = [line.split() for line in Path(place.path).read_text().splitlines()]
    assert len(lines) == 11
    assert {(line[0], line[2]) for line in lines if line[0] == "1"} == {
        ("1", "d0"),
        ("1", "d1"),
        ("1", "d3"),
    }


def test_a_unit_is_complete_when_its_last_chunk_and_all_before_it_came() -> None:
    def chunk(unit: int, index: int, is_last: bool) -> pa.Table:
        values = {"unit": [unit], "chunk": [index], "is_last": [is_last], "value": [index]}
        return with_figures(pa.table(values), (1, 2, 0.5))

    collector = UnitCollector()
    assert not list(collector.add(chunk(1, 2, True)))
    assert not list(collector.add(pa.concat_tables([chunk(1, 0, False), chunk(2, 0, False)])))
    ((unit, rows),) = collector.add(chunk(1, 1, False))
    assert (unit, sorted(rows["value"].to_pylist())) == (1, [0, 1, 2])
    assert rows.schema.names == ["value", *names("measured")]


def test_score_rows_have_the_documented_types(tmp_path: Path) -> None:
    plan = plan_of(write_sets(tmp_path / "sets.parquet", text_rows(2, 2)))
    output, _ = run_inline(plan, tmp_path / "out")
    schema = read_scores(output.file(plan.units[0])).schema
    assert [f"{field.name}: {field.type}" for field in schema] == [
        "query_id: int64",
        "doc_id: large_string",
        "score: float",
        "logit: float",
        "rank: int32",
        "first_stage_rank: int32",
        "first_stage_score: double",
        "num_tokens: int32",
        "num_visual_tokens: int32",
        "is_truncated: bool",
        "error_code: large_string",
        "error: large_string",
    ]


def test_nested_rankings_hold_the_same_rows(tmp_path: Path) -> None:
    plan = plan_of(write_sets(tmp_path / "sets.parquet", text_rows(3, 4)))
    output, _ = run_inline(plan, tmp_path / "out", with_rankings=True)
    nested = read_scores(output.rankings_file(plan.units[0])).to_pylist()
    flat = [{"query_id": row["query_id"], **each} for row in nested for each in row["ranking"]]
    assert len(nested) == 3
    assert flat == score_rows(tmp_path / "out")


def test_writing_a_unit_twice_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = set()

    def write_twice(output: Output, job_input: Any, unit: Any, rows: Any) -> None:
        for _ in range(2):
            write_unit(output, job_input, unit, rows)
            contents.add(Path(output.file(unit).path).read_bytes())

    monkeypatch.setattr(job_cases, "write_unit", write_twice)
    run_inline(plan_of(write_sets(tmp_path / "sets.parquet", text_rows(3, 4))), tmp_path / "out")
    assert len(contents) == 1
    assert [path.name for path in (tmp_path / "out" / "scores").iterdir()] == [
        "part-000000.parquet"
    ]


@pytest.mark.parametrize("name", ["run[lr=1e-5]", "what?", "all*"])
def test_what_is_done_is_seen_in_a_directory_of_any_name(tmp_path: Path, name: str) -> None:
    plan = plan_of(write_sets(tmp_path / "sets.parquet", text_rows(8, 5), 2), 10)
    output, _ = run_inline(plan, tmp_path / name)
    assert (len(plan.units), output.remaining(plan.units)) == (4, [])
    assert len(unit_files(output.directory.child(SCORES))) == 4


def test_leftovers_of_the_manifest_and_the_lease_are_removed(tmp_path: Path) -> None:
    left = [tmp_path / f".{name}.0a1b2c3d.tmp" for name in ("manifest.json", "_RUNNING")]
    for path in left:
        path.touch()
    output = Output(Location.parse(str(tmp_path)))
    output.remove_leftovers()
    assert all(path.exists() for path in left)  # perhaps they are being written
    for path in left:
        os.utime(path, (0, 0))
    output.remove_leftovers()
    assert not any(path.exists() for path in left)


ids = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d"]))
documents = st.sampled_from([text("x"), text(""), image(b"broken"), image(None), None])
candidates = st.lists(st.one_of(st.none(), st.builds(candidate, ids, documents)), max_size=6)
sets = st.lists(
    st.builds(
        query_row,
        st.one_of(st.none(), st.integers(0, 3)),
        st.one_of(st.none(), candidates),
        st.one_of(st.none(), st.just("q")),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60)
@given(sets, st.integers(1, 4), st.integers(1, 12))
def test_every_input_pair_has_exactly_one_output_row(
    tmp_path_factory: Any, rows: list[dict[str, Any]], group_size: int, unit_pairs: int
) -> None:
    directory = tmp_path_factory.mktemp("property")
    path = write_sets(directory / "sets.parquet", rows, group_size)
    _, counts = run_inline(plan_of(path, unit_pairs), directory / "out")
    expected = sorted(
        repr((row["query_id"], (each or {}).get("doc_id")))
        for row in rows
        for each in row["candidates"] or [None]
    )
    written = score_rows(directory / "out")
    assert sorted(repr((row["query_id"], row["doc_id"])) for row in written) == expected
    assert counts.num_pairs == len(expected)
    assert all((row["score"] is None) == (row["error_code"] is not None) for row in written)


def test_an_id_that_a_trec_run_cannot_hold_is_refused() -> None:
    rows = pa.table({"query_id": ["a b"], "doc_id": ["d"], "rank": [1], "logit": [0.5]})
    with pytest.raises(JobError, match="'a b'"):
        list(trec_lines(rows, "tag"))
