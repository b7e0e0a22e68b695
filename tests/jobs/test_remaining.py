"""What a run has to do, by what a directory holds: with a stand-in scorer and without Ray."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shardrank.jobs.errors import UsageError, VerificationError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.by_document import rows_of
from shardrank.jobs.outputs.done import Remaining, find_remaining, id_errors, unit_files
from shardrank.jobs.outputs.files import Output, read_scores
from shardrank.jobs.units.plan import PairsUnit, Plan
from shardrank.jobs.units.reading import read_ids
from tests.jobs.test_document_major import everything_wrong
from tests.support.job_cases import image, plan_of, run_inline, text_rows, write_sets, write_table


def indices(remaining: Remaining) -> list[int]:
    return [unit.index for unit in remaining.units]


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Plan, Output]:
    """Three units; the second one has two broken images, the third one of them."""
    rows = text_rows(9, 4)
    for query, doc in ((3, 0), (4, 1), (8, 2)):
        rows[query]["candidates"][doc]["doc"] = image(b"broken")
    plan = plan_of(write_sets(tmp_path / "sets.parquet", rows, row_group_size=3), 12)
    return plan, run_inline(plan, tmp_path / "out")[0]


def test_a_units_errors_count_while_it_stays_and_not_when_it_is_tried_again(
    scored: tuple[Plan, Output],
) -> None:
    plan, output = scored
    assert find_remaining(plan, output, ()) == Remaining([], Counter(image_decode=3))
    assert indices(find_remaining(plan, output, ("crashed",))) == []
    for codes in (("image_decode",), ("all",)):
        again = find_remaining(plan, output, codes)
        assert indices(again) == [1, 2] and not again.errors
    Path(output.file(plan.units[1]).path).unlink()
    gone = find_remaining(plan, output, ())
    assert indices(gone) == [1] and gone.errors == {"image_decode": 1}


def test_a_file_that_is_none_of_the_jobs_is_found_before_anything_is_scored(
    scored: tuple[Plan, Output],
) -> None:
    plan, output = scored
    scores = Path(output.directory.path) / "scores"
    (scores / "copy.parquet").write_bytes((scores / "part-000000.parquet").read_bytes())
    with pytest.raises(VerificationError, match="such as copy.parquet; move them away"):
        find_remaining(plan, output, ())
    (scores / "copy.parquet").unlink()
    (scores / "part-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(VerificationError, match=r"part-000000\.parquet cannot be read"):
        find_remaining(plan, output, ())


def document_major(directory: Path) -> tuple[Plan, Output]:
    """Scored, with its parts and its score files."""
    plan = plan_of(everything_wrong(directory), 11, order="document", bucket_pairs=20)
    return plan, run_inline(plan, directory / "out")[0]


def total(output: Output) -> Counter[str]:
    errors: Counter[str] = Counter()
    for file in unit_files(output.directory.child("scores")):
        errors.update(file.errors)
    return errors


def test_in_document_major_order_every_error_counts_once_however_far_the_job_came(
    tmp_path: Path,
) -> None:
    plan, output = document_major(tmp_path)
    assert plan.documents is not None
    num_errors = total(output).total()
    assert num_errors > 15
    while True:  # one score file fewer each time, until only the parts are left
        remaining = find_remaining(plan, output, ())
        assert remaining.errors.total() == num_errors and not remaining.documents
        if len(remaining.units) == len(plan.units):
            break
        Path(output.file(plan.units[len(remaining.units)]).path).unlink()


def test_parts_with_an_error_that_is_tried_again_are_stale_and_count_when_they_are_written(
    tmp_path: Path,
) -> None:
    plan, output = document_major(tmp_path)
    assert plan.documents is not None
    before = total(output)
    for unit in plan.units[:-1]:
        Path(output.file(unit).path).unlink()
    again = find_remaining(plan, output, ("invalid_content",))
    assert again.documents and again.errors["invalid_content"] <= 1  # in the file that stays

    errors = Counter(again.errors)
    for unit in again.documents:
        rows = rows_of(plan.documents, again.units, read_scores(output.file(unit)))
        errors.update(code for code in rows["error_code"].to_pylist() if code)
    assert errors.total() == before.total()


def test_what_an_earlier_version_scored_by_document_is_not_passed_over(tmp_path: Path) -> None:
    plan, output = document_major(tmp_path)
    (tmp_path / "out" / "by_document").rename(tmp_path / "out" / "parts")
    with pytest.raises(UsageError, match="out/parts has documents .* delete the folder"):
        find_remaining(plan, output, ())


def test_the_errors_of_ids_are_those_that_reading_finds(tmp_path: Path) -> None:
    run = [(0, 0), (0, 9), (0, 9), (0, None), (0, 0), (9, 0), (None, 0), (None, 9), (0, 1)]
    rows = [
        {"query_id": q if q is None else f"q{q}", "doc_id": d if d is None else f"d{d}"}
        for q, d in run
    ]
    options = InputOptions(
        run=write_table(tmp_path / "run.parquet", rows),
        queries=write_table(tmp_path / "q.parquet", [{"query_id": "q0", "text": "q"}]),
        corpus=write_table(
            tmp_path / "c.parquet", [{"doc_id": f"d{i}", "text": "d"} for i in (0, 1)]
        ),
    )
    plan = plan_of(options, order="document")
    found: Counter[Any] = Counter()
    expected: Counter[Any] = Counter()
    for unit in plan.units:
        assert isinstance(unit, PairsUnit)
        found += id_errors(unit.pairs())
        for query in read_ids(plan.input, unit):
            expected.update(each.error.code for each in query.candidates if each.error)
    assert found == expected and found.total() == 7
    assert set(found) == {"document_not_found", "null_id", "duplicate_id", "query_not_found"}
