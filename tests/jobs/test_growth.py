"""--add-new: an input that grew goes on in the same output, and only what is new is scored."""

import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.actors.config import RerankerConfig
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.inputs.forms import InputOptions, open_job_input
from shardrank.jobs.outputs.budget import MaxErrors
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.outputs.manifest import Growth, Manifest
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.planning import still
from shardrank.jobs.rerank import JobOptions, Summary, rerank
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.storage import Location
from shardrank.jobs.units.growth import Held, placed
from shardrank.jobs.units.plan import plan_units
from tests.support import standin
from tests.support.engine import TINY
from tests.support.job_cases import (
    image,
    plan_of,
    run_inline,
    score_rows,
    text_rows,
    write_sets,
    write_table,
)

CONFIG = RerankerConfig(model=str(TINY), num_threads=1)
Row = dict[str, Any]


class NotingPreprocessor(standin.StandInPreprocessor):
    """Notes each pair that it prepares, and dies of a document `fatal` while a file is there."""

    def __init__(self, folder: Path, config: RerankerConfig) -> None:
        super().__init__(config)
        self._folder = folder

    def prepare_pairs(self, pairs: Iterable[tuple[Any, Any]]) -> Any:
        pairs = list(pairs)
        with (self._folder / "prepared").open("a") as log:
            for query, document in pairs:
                asked, found = (
                    "".join(getattr(side, "texts", ["error"])) for side in (query.query, document)
                )
                if "fatal" in found and (self._folder / "is_fatal").exists():
                    raise JobError("as if it had been killed")
                log.write(f"{asked} | {found}\n")
        return super().prepare_pairs(pairs)


@pytest.fixture(autouse=True)
def _workers(request: pytest.FixtureRequest) -> None:
    """Those of a test that asks for Ray are Ray's, all others' are this process."""
    if "ray_address" in request.fixturenames:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    else:
        request.getfixturevalue("without_ray")


def run(folder: Path, options: InputOptions, **more: Any) -> Summary:
    engine = Engine(partial(NotingPreprocessor, folder), standin.StandInScorer)
    more = {"output": str(folder / "out"), "unit_pairs": 10} | more
    return rerank(JobOptions(input=options, **more), CONFIG, engine)


def prepared(folder: Path) -> list[str]:
    """What was prepared since it was last asked for."""
    log = folder / "prepared"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(lines)


def files(folder: Path) -> dict[str, int]:
    scores = (folder / "out" / "scores").iterdir()
    return {path.name: path.stat().st_mtime_ns for path in scores}


def by_pair(folder: Path) -> dict[Any, Row]:
    return {(row["query_id"], row["doc_id"]): row for row in score_rows(folder)}


def assert_as_in_one_go(folder: Path, options: InputOptions) -> None:
    """The same rows as of a job that had the whole input from the start, and proved."""
    run_inline(plan_of(options, 10), folder / "fresh")
    expected = by_pair(folder / "fresh")
    assert by_pair(folder / "out") == expected
    assert verify_output(str(folder / "out")).num_pairs == len(expected)


# Runs with a corpus


def tables(folder: Path, num_queries: int, num_documents: int, media: bool = False) -> None:
    queries = [{"query_id": f"q{i}", "query": f"query {i}"} for i in range(num_queries)]
    documents: list[Row] = [
        {"doc_id": f"d{j}", "text": f"document {j}"}
        | ({"image": {"bytes": None, "path": None}} if media else {})
        for j in range(num_documents)
    ]
    write_table(folder / "queries.parquet", queries)
    write_table(folder / "corpus.parquet", documents)


def write_run(folder: Path, pairs: Iterable[tuple[int, int]], name: str = "a") -> None:
    rows = [
        {"query_id": f"q{i}", "doc_id": f"d{j}", "rank": rank, "score": 1 / rank}
        for rank, (i, j) in enumerate(pairs, start=1)
    ]
    write_table(folder / "run" / f"{name}.parquet", rows)


def run_options(folder: Path) -> InputOptions:
    places = (str(folder / name) for name in ("run", "queries.parquet", "corpus.parquet"))
    return InputOptions(None, *places)


@pytest.mark.parametrize("order", ["query", "document"])
def test_a_run_that_grew_has_only_its_new_pairs_scored(
    tmp_path: Path, ray_address: str, order: Any
) -> None:
    tables(tmp_path, 6, 12)
    write_run(tmp_path, [(i, j) for i in range(4) for j in range(6)])
    run(tmp_path, run_options(tmp_path), order=order, with_trec_run=True, with_rankings=True)
    prepared(tmp_path)
    before = files(tmp_path)
    # Query 1 has two more documents, query 5 is new, and document 99 is not in the corpus yet.
    write_run(tmp_path, [(1, 7), (1, 8), (5, 0), (5, 1), (5, 99)], "b")
    summary = run(tmp_path, run_options(tmp_path), order=order, with_rankings=True, add_new=True)
    expected = ["query 1 | document 7", "query 1 | document 8"]
    assert prepared(tmp_path) == [*expected, "query 5 | document 0", "query 5 | document 1"]
    changed = {name for name, mtime in files(tmp_path).items() if before.get(name) != mtime}
    assert len(changed) == 2 and set(before) - changed
    assert (summary.counts.num_pairs, summary.counts.num_failed) == (29, 1)
    assert summary.trec_run and len(Path(summary.trec_run).read_text().splitlines()) == 28
    ranks = sorted(
        row["rank"] for (query, _), row in by_pair(tmp_path / "out").items() if query == "q1"
    )
    assert ranks == list(range(1, 9))
    nested = pq.read_table(tmp_path / "out" / "rankings").to_pylist()
    assert sorted(len(row["ranking"]) for row in nested) == [3, 6, 6, 6, 8]
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_a_document_that_came_later_is_scored_then(tmp_path: Path) -> None:
    order: Any = "document"
    tables(tmp_path, 3, 4)
    write_run(tmp_path, [(i, j) for i in range(3) for j in (0, 1, 2, 7)])
    assert run(tmp_path, run_options(tmp_path), order=order).counts.num_failed == 3
    prepared(tmp_path)
    tables(tmp_path, 3, 8)  # the same rows, and others after them
    assert run(tmp_path, run_options(tmp_path), order=order, add_new=True).manifest.errors == {}
    assert prepared(tmp_path) == [f"query {i} | document 7" for i in range(3)]
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_a_pair_that_comes_again_is_a_duplicate_and_is_not_scored(tmp_path: Path) -> None:
    tables(tmp_path, 2, 4)
    write_run(tmp_path, [(0, 0), (0, 1), (1, 0)])
    run(tmp_path, run_options(tmp_path))
    prepared(tmp_path)
    write_run(tmp_path, [(0, 1), (0, 2)], "b")
    summary = run(tmp_path, run_options(tmp_path), add_new=True)
    assert summary.manifest.errors == {"duplicate_id": 1}
    assert prepared(tmp_path) == ["query 0 | document 2"]


def test_a_deeper_run_in_the_place_of_the_old_one_is_growth(tmp_path: Path) -> None:
    tables(tmp_path, 3, 9)
    write_run(tmp_path, [(i, j) for i in range(2) for j in range(3)])
    run(tmp_path, run_options(tmp_path))
    prepared(tmp_path)
    write_run(tmp_path, [(i, j) for i in (2, 0, 1) for j in range(5)])
    run(tmp_path, run_options(tmp_path), add_new=True)
    assert len(prepared(tmp_path)) == 2 * 2 + 5
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_a_run_that_lost_a_pair_is_refused_by_its_name(tmp_path: Path) -> None:
    tables(tmp_path, 3, 9)
    write_run(tmp_path, [(i, j) for i in range(2) for j in range(3)])
    run(tmp_path, run_options(tmp_path))
    write_run(tmp_path, [(i, j) for i in range(2) for j in (0, 1, 5)])
    with pytest.raises(
        UsageError, match=r"no longer has the pair of query_id 'q0' and doc_id 'd2'"
    ):
        run(tmp_path, run_options(tmp_path), add_new=True)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_corpus_with_another_content_is_refused_by_the_files_name(tmp_path: Path) -> None:
    tables(tmp_path, 3, 9)
    write_run(tmp_path, [(0, 1), (1, 1)])
    run(tmp_path, run_options(tmp_path))
    documents = pq.read_table(tmp_path / "corpus.parquet").to_pylist()
    documents[4]["text"] = "another document"
    write_table(tmp_path / "corpus.parquet", [*documents, {"doc_id": "d9", "text": "new"}])
    with pytest.raises(UsageError, match=r"corpus.parquet has changed: its first 9 rows are not"):
        run(tmp_path, run_options(tmp_path), add_new=True)
    with pytest.raises(UsageError, match=r"corpus.parquet has changed: it had 9 rows and has 10"):
        run(tmp_path, run_options(tmp_path))


@pytest.mark.parametrize("order", ["query", "document"])
def test_growth_that_is_killed_goes_on_and_scores_nothing_twice(tmp_path: Path, order: Any) -> None:
    tables(tmp_path, 9, 12)
    write_run(tmp_path, [(i, j) for i in range(6) for j in range(6)])
    run(tmp_path, run_options(tmp_path), order=order)
    prepared(tmp_path)
    documents = pq.read_table(tmp_path / "corpus.parquet").to_pylist()
    fatal = {"doc_id": "d12", "text": "fatal"}
    write_table(tmp_path / "corpus.parquet", [*documents, fatal])
    write_run(tmp_path, [(i, j) for i in (0, 2, 8) for j in (7, 8, 9, 12)], "b")
    (tmp_path / "is_fatal").touch()
    with pytest.raises(JobError):
        run(tmp_path, run_options(tmp_path), order=order, add_new=True)
    (tmp_path / "is_fatal").unlink()
    prepared(tmp_path)
    # Without the option too: the output is of the grown input by now.
    run(tmp_path, run_options(tmp_path), order=order)
    assert all(line.endswith(("7", "8", "9", "fatal")) for line in prepared(tmp_path))
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_an_input_may_grow_again(tmp_path: Path) -> None:
    order: Any = "query"
    tables(tmp_path, 4, 9)
    write_run(tmp_path, [(i, j) for i in range(3) for j in range(3)])
    run(tmp_path, run_options(tmp_path), order=order)
    for step in range(2):
        write_run(tmp_path, [(step, 5 + step), (3, step)], f"b{step}")
        run(tmp_path, run_options(tmp_path), order=order, add_new=True)
    assert len(list((tmp_path / "out").glob("growth-*.parquet"))) == 1
    assert run(tmp_path, run_options(tmp_path), order=order, add_new=True).was_finished
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_an_error_of_content_is_kept_and_counted(tmp_path: Path) -> None:
    documents = [{"doc_id": f"d{j}", "doc": image(b"broken" if j == 1 else b"x")} for j in range(4)]
    write_table(tmp_path / "corpus.parquet", documents)
    write_table(tmp_path / "queries.parquet", [{"query_id": "q0", "query": "query 0"}])
    write_run(tmp_path, [(0, 0), (0, 1)])
    run(tmp_path, run_options(tmp_path), order="query")
    write_run(tmp_path, [(0, 2)], "b")
    summary = run(tmp_path, run_options(tmp_path), order="query", add_new=True)
    assert summary.manifest.errors == {"image_decode": 1}
    more = {"order": "query", "retry_errors": ("image_decode",)}
    assert not run(tmp_path, run_options(tmp_path), **more).was_finished


@pytest.mark.parametrize("order", ["query", "document"])
def test_an_error_of_a_querys_options_is_counted_once_where_a_document_is_missing_too(
    tmp_path: Path, order: Any
) -> None:
    tables(tmp_path, 3, 4)
    queries = pq.read_table(tmp_path / "queries.parquet").to_pylist()
    lengths = (None, -1, None)
    queries = [each | {"max_length": n} for each, n in zip(queries, lengths, strict=True)]
    write_table(tmp_path / "queries.parquet", queries)
    write_run(tmp_path, [(0, 0), (1, 0), (1, 9)])
    more = {"order": order, "max_errors": MaxErrors.parse("2")}
    run(tmp_path, run_options(tmp_path), **more)
    write_run(tmp_path, [(0, 1)], "b")
    summary = run(tmp_path, run_options(tmp_path), add_new=True, **more)
    assert summary.manifest.errors == {"invalid_content": 2}
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_an_output_on_s3_grows_too(tmp_path: Path, s3_endpoint: str) -> None:
    tables(tmp_path, 3, 4)
    write_run(tmp_path, [(0, 0), (1, 1)])
    host = urlsplit(s3_endpoint).netloc
    place = f"s3://bucket/grows?scheme=http&endpoint_override={host}&region=us-east-1"
    run(tmp_path, run_options(tmp_path), output=place)
    prepared(tmp_path)
    write_run(tmp_path, [(0, 2), (2, 1)], "b")
    run(tmp_path, run_options(tmp_path), output=place, add_new=True)
    assert prepared(tmp_path) == ["query 0 | document 2", "query 2 | document 1"]
    assert verify_output(place).num_pairs == 4
    assert run(tmp_path, run_options(tmp_path), output=place, add_new=True).was_finished


def killed(folder: Path, options: InputOptions, **more: Any) -> None:
    """A run that dies of a document `fatal`."""
    (folder / "is_fatal").touch()
    with pytest.raises(JobError):
        run(folder, options, **more)
    (folder / "is_fatal").unlink()
    prepared(folder)


@pytest.mark.parametrize("order", ["query", "document"])
def test_a_job_that_was_killed_before_its_first_file_may_grow(tmp_path: Path, order: Any) -> None:
    tables(tmp_path, 3, 4)
    write_table(tmp_path / "corpus.parquet", [{"doc_id": "d0", "text": "fatal"}])
    write_run(tmp_path, [(0, 0)])
    killed(tmp_path, run_options(tmp_path), order=order)
    write_run(tmp_path, [(1, 0)], "b")
    run(tmp_path, run_options(tmp_path), order=order, add_new=True)
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_trec_run_and_measures_are_of_what_the_input_grew_to_though_growth_was_killed(
    tmp_path: Path,
) -> None:
    tables(tmp_path, 3, 4)
    documents = pq.read_table(tmp_path / "corpus.parquet").to_pylist()
    write_table(tmp_path / "corpus.parquet", [*documents, {"doc_id": "d4", "text": "fatal"}])
    write_run(tmp_path, [(0, 0), (1, 1)])
    manifest = run(tmp_path, run_options(tmp_path), with_trec_run=True).manifest
    measured = manifest.values() | {"measures": {"nDCG@10": 1.0}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(measured))
    write_run(tmp_path, [(0, 4), (2, 1)], "b")
    killed(tmp_path, run_options(tmp_path), add_new=True)
    assert run(tmp_path, run_options(tmp_path), add_new=True).manifest.measures is None
    assert len((tmp_path / "out" / "run.trec").read_text().splitlines()) == 4
    (tmp_path / "out" / "run.trec").unlink()
    assert run(tmp_path, run_options(tmp_path)).trec_run is None


def test_rankings_of_a_killed_writer_are_not_left_beside_the_grown_ones(tmp_path: Path) -> None:
    """The units of what was not scored yet are cut anew, and may be fewer."""
    tables(tmp_path, 6, 12)
    write_run(tmp_path, [(i, j) for i in range(4) for j in range((8, 4)[i % 2])])
    run(tmp_path, run_options(tmp_path), with_rankings=True)
    for number in (1, 3):
        (tmp_path / "out" / "scores" / f"part-{number:06d}.parquet").unlink()
    write_run(tmp_path, [(0, 9)], "b")
    run(tmp_path, run_options(tmp_path), add_new=True, with_rankings=True)
    scores, rankings = (
        {path.name for path in (tmp_path / "out" / name).iterdir()}
        for name in ("scores", "rankings")
    )
    assert rankings == scores


@pytest.mark.parametrize("order", ["query", "document"])
def test_a_file_that_is_lost_while_the_job_adds_to_it_is_made_again(
    tmp_path: Path, order: Any
) -> None:
    tables(tmp_path, 4, 4)
    documents = pq.read_table(tmp_path / "corpus.parquet").to_pylist()
    write_table(tmp_path / "corpus.parquet", [*documents, {"doc_id": "d4", "text": "fatal"}])
    write_run(tmp_path, [(i, j) for i in range(4) for j in range(4)])
    run(tmp_path, run_options(tmp_path), order=order)
    write_run(tmp_path, [(0, 4)], "b")
    killed(tmp_path, run_options(tmp_path), order=order, add_new=True)
    (tmp_path / "out" / "scores" / "part-000000.parquet").unlink()
    run(tmp_path, run_options(tmp_path), order=order, add_new=True)
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


@pytest.mark.parametrize("order", ["query", "document"])
def test_new_ranks_of_old_pairs_are_taken_over_and_nothing_is_scored(
    tmp_path: Path, order: Any
) -> None:
    tables(tmp_path, 3, 4)
    write_run(tmp_path, [(i, j) for i in range(3) for j in range(4)])
    run(tmp_path, run_options(tmp_path), order=order)
    prepared(tmp_path)
    write_run(tmp_path, [(i, j) for j in range(4) for i in range(3)])
    run(tmp_path, run_options(tmp_path), order=order, add_new=True)
    assert prepared(tmp_path) == []
    assert_as_in_one_go(tmp_path, run_options(tmp_path))


def test_ids_of_another_type_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    tables(tmp_path, 3, 4)
    write_run(tmp_path, [(0, 0), (1, 1)])
    run(tmp_path, run_options(tmp_path))
    write_table(tmp_path / "run" / "a.parquet", [{"query_id": 0, "doc_id": "d0", "rank": 1}])
    with pytest.raises(UsageError, match="query_id was large_string and is now int64"):
        run(tmp_path, run_options(tmp_path), add_new=True)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_an_instruction_that_comes_to_a_scored_query_is_refused(tmp_path: Path) -> None:
    tables(tmp_path, 3, 4)
    write_run(tmp_path, [(0, 0), (1, 1)])
    rows = [{"query_id": "q1", "instruction": "which fits?"}]
    write_table(tmp_path / "instructions.parquet", rows)
    options = InputOptions(str(tmp_path))
    run(tmp_path, options)
    write_run(tmp_path, [(2, 1)], "b")
    more = [{"query_id": "q2", "instruction": "which is new?"}]
    write_table(tmp_path / "instructions.parquet", rows + more)
    run(tmp_path, options, add_new=True)
    assert_as_in_one_go(tmp_path, options)
    late = [{"query_id": "q0", "instruction": "which is late?"}]
    write_table(tmp_path / "instructions.parquet", rows + more + late)
    with pytest.raises(UsageError, match=r"query_id 'q0' has rows already, and an instruction"):
        run(tmp_path, options, add_new=True)


def test_a_line_that_goes_on_is_no_new_line(tmp_path: Path) -> None:
    tables(tmp_path, 1, 1)
    corpus = tmp_path / "corpus.tsv"
    corpus.write_text("d0\tdocument 0\nd1\tdocument 1")
    write_run(tmp_path, [(0, 0), (0, 1)])
    options = InputOptions(
        None, str(tmp_path / "run"), str(tmp_path / "queries.parquet"), str(corpus)
    )
    run(tmp_path, options)
    text = corpus.read_text()
    corpus.write_text(text + "2\nd2\tdocument 2\n")
    with pytest.raises(UsageError, match="corpus.tsv has changed: its last line had no end"):
        run(tmp_path, options, add_new=True)
    corpus.write_text(text + "\nd2\tdocument 2\n")
    write_run(tmp_path, [(0, 2)], "b")
    run(tmp_path, options, add_new=True)
    assert_as_in_one_go(tmp_path, options)


def test_a_new_row_before_an_old_one_of_its_pair_is_refused(tmp_path: Path) -> None:
    def write(name: str, *pairs: tuple[str, str]) -> None:
        rows = [{"query_id": q, "query": f"{q} {name}", "doc_id": d, "doc": d} for q, d in pairs]
        write_table(tmp_path / "pairs" / f"{name}.parquet", rows)

    write("a", ("q0", "d0"))
    write("b", ("q1", "d1"))
    run(tmp_path, InputOptions(str(tmp_path / "pairs")))
    write("a", ("q0", "d0"), ("q1", "d2"))
    with pytest.raises(UsageError, match="a.parquet has a new row of query_id 'q1' .*'d2' before"):
        run(tmp_path, InputOptions(str(tmp_path / "pairs")), add_new=True)
    write("a", ("q0", "d0"), ("q2", "d2"))
    run(tmp_path, InputOptions(str(tmp_path / "pairs")), add_new=True)
    assert_as_in_one_go(tmp_path, InputOptions(str(tmp_path / "pairs")))


# Candidate sets and pairs


def test_candidate_sets_grow_by_files(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    rows = text_rows(12, 4)
    write_sets(tmp_path / "sets" / "b.parquet", rows[:6], 2)
    run(tmp_path, InputOptions(str(tmp_path / "sets")))
    before = files(tmp_path)
    prepared(tmp_path)
    write_sets(tmp_path / "sets" / "a.parquet", rows[6:9], 2)  # before the old one by its name
    run(tmp_path, InputOptions(str(tmp_path / "sets")), add_new=True)
    assert len(prepared(tmp_path)) == 3 * 4
    assert before.items() <= files(tmp_path).items()
    write_sets(tmp_path / "sets" / "b.parquet", rows[:6] + rows[9:], 3)  # written anew, and more
    run(tmp_path, InputOptions(str(tmp_path / "sets")), add_new=True)
    assert len(prepared(tmp_path)) == 3 * 4
    assert before.items() <= files(tmp_path).items()
    assert_as_in_one_go(tmp_path, InputOptions(str(tmp_path / "sets")))


def test_pairs_grow_by_lines(tmp_path: Path) -> None:
    def line(query: int, document: int) -> str:
        text = f'"query": "query {query}", "doc": "document {document}"'
        return f'{{"query_id": {query}, "doc_id": "d{document}", {text}}}\n'

    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(line(i, j) for i in range(3) for j in range(4)))
    run(tmp_path, InputOptions(str(path)))
    prepared(tmp_path)
    with path.open("a") as stream:
        stream.write(line(1, 9) + line(7, 7) + line(0, 0))
    summary = run(tmp_path, InputOptions(str(path)), add_new=True)
    assert prepared(tmp_path) == ["query 1 | document 9", "query 7 | document 7"]
    assert summary.manifest.errors == {"duplicate_id": 1}
    path.write_text(path.read_text().replace("document 2", "document 3"))
    with pytest.raises(
        UsageError, match=r"pairs.jsonl has changed: its first [\d,]+ bytes are not"
    ):
        run(tmp_path, InputOptions(str(path)), add_new=True)


# What is no growth


def test_growth_is_not_written_over_what_another_run_added_meanwhile(tmp_path: Path) -> None:
    output = Output(Location.parse(str(tmp_path)))
    planned = Manifest(output, {"num_units": 1}, {}, seconds=1.0)
    replace(planned, seconds=2.0).save()
    assert still(output, planned).seconds == 2.0
    replace(planned, growth=Growth("growth-1.parquet", 1)).save()
    with pytest.raises(JobError, match="another run changed it meanwhile"):
        still(output, planned)


def test_a_mere_touch_is_no_change(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(3, 4))
    run(tmp_path, InputOptions(sets))
    os.utime(sets, ns=(1, 1))
    assert run(tmp_path, InputOptions(sets)).was_finished
    assert verify_output(str(tmp_path / "out")).num_pairs == 12


def test_another_content_of_the_same_size_is_a_change_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query_id": "q", "doc_id": "d", "query": "a", "doc": "b"}\n')
    run(tmp_path, InputOptions(str(path)))
    path.write_text(path.read_text().replace('"b"', '"c"'))
    with pytest.raises(UsageError, match=r"pairs.jsonl has changed: .* and another content"):
        run(tmp_path, InputOptions(str(path)))


def test_a_new_file_without_the_option_is_refused_and_the_option_named(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write_sets(tmp_path / "sets" / "a.parquet", text_rows(2, 2))
    run(tmp_path, InputOptions(str(tmp_path / "sets")))
    write_sets(tmp_path / "sets" / "b.parquet", text_rows(2, 2))
    with pytest.raises(UsageError, match=r"b.parquet came to it \(--add-new scores what is new\)"):
        run(tmp_path, InputOptions(str(tmp_path / "sets")))


def test_growth_does_not_change_the_job_otherwise(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write_sets(tmp_path / "sets" / "a.parquet", text_rows(2, 2))
    run(tmp_path, InputOptions(str(tmp_path / "sets")))
    write_sets(tmp_path / "sets" / "b.parquet", text_rows(2, 2))
    with pytest.raises(UsageError, match="rankings was false and is now true"):
        run(tmp_path, InputOptions(str(tmp_path / "sets")), add_new=True, with_rankings=True)


# Planning alone


def plans(seed: int, num_queries: int, folder: Path) -> Iterator[None]:
    """A random run, and what came to it."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(num_queries), draw.randrange(9)) for _ in range(40)]
    for low, high, name in ((0, 25, "m"), (25, 32, "a"), (32, 40, "z")):
        write_run(folder, pairs[low:high], name)
        yield


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 30), num_queries=st.integers(1, 12))
def test_units_that_grow_hold_every_pair_once_and_queries_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_queries: int
) -> None:
    folder = tmp_path_factory.mktemp("growth")
    tables(folder, num_queries, 9)
    held, earlier = None, 0
    for _ in plans(seed, num_queries, folder):
        plan = plan_units(open_job_input(run_options(folder)), 7, "query", held=held)
        units: dict[Any, int] = {}
        rows = []
        for unit in plan.units:
            for pair, is_kept in zip(unit.pairs().to_pylist(), unit.is_kept(), strict=True):
                assert units.setdefault(pair["query_id"], unit.index) == unit.index
                rows.append((unit.index, pair["query_id"], pair["doc_id"], is_kept))
        assert sum(is_kept for *_, is_kept in rows) == earlier
        names = ("unit", "query_id", "doc_id")
        table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
        table = table.append_column("is_scored", pa.array([True] * len(rows)))
        held, earlier = Held(table, True), len({row[1:3] for row in rows})
    full = open_job_input(run_options(folder))
    whole = plan_units(full, 7, "query")
    expected = sorted(p["doc_id"] for unit in whole.units for p in unit.pairs().to_pylist())
    assert sorted(row[2] for row in rows) == expected


def test_a_pair_with_a_null_id_is_held_by_nothing() -> None:
    pairs = pa.table({"query_id": ["a", "a"], "doc_id": pa.array(["x", None])})
    held = Held(
        pa.table(
            {
                "unit": pa.array([0, 0], pa.int32()),
                "query_id": ["a", "a"],
                "doc_id": pa.array(["x", None]),
                "is_scored": [True, False],
            }
        ),
        True,
    )
    units, has_result = placed(pairs, held)
    assert units.tolist() == [0, 0] and has_result.tolist() == [True, False]
