from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.parquet import Footer, RowGroup
from shardrank.jobs.units.plan import PairsUnit, SetsUnit, _row_ranges, unit_name
from tests.support.job_cases import plan_of, read_all, text_rows, write_sets, write_table


def footer(groups: list[tuple[int, int]]) -> Footer:
    """Row groups of (rows, pairs)."""
    return Footer(None, tuple(RowGroup(rows, {"c": (pairs, 100)}) for rows, pairs in groups))


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 50_000)), max_size=8))
def test_row_ranges_cover_every_row_once_in_order(groups: list[tuple[int, int]]) -> None:
    ranges = list(_row_ranges(footer(groups), ["c"], "c", 1_000))
    covered = [row for start, stop, _ in ranges for row in range(start, stop)]
    assert covered == list(range(sum(rows for rows, _ in groups)))


def test_small_row_groups_share_a_unit_and_large_ones_are_cut() -> None:
    ranges = list(_row_ranges(footer([(4, 400), (4, 400), (10, 5_000)]), ["c"], "c", 1_000))
    assert ranges == [(0, 8, 800), *[(8 + 2 * i, 10 + 2 * i, 1_000) for i in range(5)]]


def test_the_same_input_and_unit_size_give_the_same_units(tmp_path: Path) -> None:
    path = write_sets(tmp_path / "sets.parquet", text_rows(20, 10), row_group_size=6)
    first, second = plan_of(path, 50), plan_of(path, 50)
    assert first.fingerprint == second.fingerprint != plan_of(path, 60).fingerprint
    assert [unit_name(unit) for unit in first.units] == [f"part-00000{i}" for i in range(7)]


def test_units_of_candidate_sets_count_pairs_from_the_footer(tmp_path: Path) -> None:
    path = write_sets(tmp_path / "sets.parquet", text_rows(6, 7))
    (unit,) = plan_of(path).units
    assert isinstance(unit, SetsUnit)
    assert (unit.num_queries, unit.num_pairs) == (6, 42)


def test_a_query_scattered_over_files_ends_in_one_unit(tmp_path: Path) -> None:
    rows = [
        {"query_id": f"q{i % 3}", "doc_id": f"d{i}", "query": "q", "doc": "d"} for i in range(30)
    ]
    write_table(tmp_path / "pairs" / "a.parquet", rows[:17])
    write_table(tmp_path / "pairs" / "b.parquet", rows[17:])
    plan = plan_of(str(tmp_path / "pairs"), 12)
    assert [type(unit) for unit in plan.units] == [PairsUnit] * 3
    queries = read_all(str(tmp_path / "pairs"))
    assert [query.query_id for query in queries] == ["q0", "q1", "q2"]
    assert [each.doc_id for each in queries[1].candidates] == [f"d{i}" for i in range(1, 30, 3)]


def test_a_query_larger_than_a_unit_is_a_unit(tmp_path: Path) -> None:
    rows = [
        {"query_id": q, "doc_id": d, "query": "q", "doc": "d"}
        for q, num_documents in enumerate([2, 9, 2, 2])
        for d in range(num_documents)
    ]
    plan = plan_of(write_table(tmp_path / "pairs.parquet", rows), 5)
    assert [(unit.num_queries, unit.num_pairs) for unit in plan.units] == [(1, 2), (1, 9), (2, 4)]


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows"):
        plan_of(write_sets(tmp_path / "sets.parquet", []))
