"""Document-major order: the same rows as in query-major order, and each page once."""

import functools
import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from shardrank.actors.config import RerankerConfig
from shardrank.actors.prepared import Visual
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.scorer import Scorer
from shardrank.cli import main
from shardrank.jobs.errors import JobError, TooManyErrors, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.inputs.parquet import Footer, RowGroup
from shardrank.jobs.inputs.tables import OpenedTable, Table
from shardrank.jobs.outputs.budget import Budget, MaxErrors
from shardrank.jobs.outputs.by_document import read_bucket, regroup, write_by_document
from shardrank.jobs.outputs.done import find_remaining
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.outputs.manifest import Counts, Manifest
from shardrank.jobs.outputs.scores import lookups_of
from shardrank.jobs.rerank import JobOptions, Summary, rerank
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.run.progress import Display
from shardrank.jobs.storage import Location
from shardrank.jobs.units.documents import (
    DocumentPlan,
    DocumentUnit,
    bucket_starts,
    plan_documents,
    unit_ends,
)
from shardrank.summary import print_summary
from tests.support import standin
from tests.support.engine import GOLDEN, TINY
from tests.support.job_cases import (
    MEDIA,
    plan_of,
    run_inline,
    score_rows,
    text_rows,
    write_sets,
    write_table,
)

CONFIG = RerankerConfig(model=str(TINY), num_threads=1, media_root=str(GOLDEN))
REAL = Engine(Preprocessor, Scorer)

CORPUS = pa.schema([("doc_id", pa.string()), ("text", pa.string()), ("image", MEDIA)])
QUERIES = pa.schema(
    [("query_id", pa.string()), ("text", pa.string()), ("image", MEDIA)]
    + [("instruction", pa.string()), ("max_length", pa.int32()), ("image_max_pixels", pa.int32())]
)
RUN = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("rank", pa.int32())])


def page(seed: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def document(index: int, **more: Any) -> dict[str, Any]:
    return {"doc_id": f"d{index}", "text": f"page {index}", "image": page(index), **more}


def query(index: int, **more: Any) -> dict[str, Any]:
    return {"query_id": f"q{index}", "text": f"query {index}", **more}


def pair(query: int | None, document: int | None, rank: int | None = None) -> dict[str, Any]:
    ids = [None if i is None else f"{name}{i}" for name, i in (("q", query), ("d", document))]
    return {"query_id": ids[0], "doc_id": ids[1], "rank": rank}


def write_run(directory: Path, corpus: list[Any], queries: list[Any], run: list[Any]) -> Any:
    for name, rows, schema in (
        ("corpus", corpus, CORPUS),
        ("queries", queries, QUERIES),
        ("run", run, RUN),
    ):
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, directory / f"{name}.parquet", row_group_size=3)
    return InputOptions(str(directory))


def pages_and_queries(directory: Path, num_pages: int, num_queries: int, fan: int) -> Any:
    """Each query names `fan` pages, each page has about the same number of queries."""
    run = [pair(i, (i * 5 + j) % num_pages, j + 1) for i in range(num_queries) for j in range(fan)]
    corpus = [document(i) for i in range(num_pages)]
    return write_run(directory, corpus, [query(i) for i in range(num_queries)], run)


def everything_wrong(directory: Path) -> InputOptions:
    """Shared pages, and whatever can be wrong with a pair, in one run."""
    corpus = [document(i) for i in range(8)]
    corpus[2]["image"] = {"bytes": b"\x89PNG damaged", "path": None}
    corpus[3] |= {"text": None, "image": {"bytes": None, "path": None}}
    corpus[4] |= {"text": None}
    corpus[5] |= {"text": "no picture", "image": None}
    queries = [
        query(0),
        query(1, instruction="Find the page in another language."),
        query(2, image_max_pixels=4_096),
        query(3, image=page(50)),
        query(4, image={"bytes": b"damaged", "path": None}),
        query(5, max_length=-5),
        query(6, max_length=40),
        query(7, image_max_pixels=1),  # less than the configured minimum
    ]
    run = [pair(i, j, j + 1) for j in range(8) for i in range(8)]
    wrong = [(0, 9), (0, 3), (0, None), (9, 0), (None, 1), (5, 9), (5, 1), (4, 1), (0, 9)]
    run += [pair(i, j) for i, j in [*wrong, (10, None), (None, None), (None, 9)]]
    return write_run(directory, corpus, queries, run)


def both_orders(options: Any, directory: Path, engine: Engine, unit_pairs: int) -> list[Any]:
    rows = []
    for order in ("query", "document"):
        plan = plan_of(options, unit_pairs, order=order, bucket_pairs=20)
        assert plan.choice.order == order
        run_inline(plan, directory / order, engine=engine, config=CONFIG)
        rows.append(score_rows(directory / order))
    names = [[path.name for path in sorted((directory / order / "scores").iterdir())]
             for order in ("query", "document")]  # fmt: skip
    assert names[0] == names[1]
    return rows


def test_both_orders_give_the_same_rows(tmp_path: Path) -> None:
    rows, again = both_orders(everything_wrong(tmp_path), tmp_path, REAL, unit_pairs=11)
    assert len(rows) == len(again) == 76
    for row, other in zip(rows, again, strict=True):
        for name in ("score", "logit"):
            assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
        assert row == other
    codes = {row["error_code"] for row in rows}
    assert codes == {None, "image_decode", "invalid_content", "document_not_found", "null_id"} | {
        "empty_document",
        "duplicate_id",
        "query_not_found",
    }
    assert {row["is_truncated"] for row in rows} == {True, False}


class CountingPreprocessor(Preprocessor):
    """Counts what it decodes, without the cache that might hide that it was asked again."""

    num_decoded = 0

    def _image_pixels(self, image: Any, options: Any, permit: Any) -> Any:
        self.num_decoded += 1
        return super()._image_pixels(image, options, permit)


def test_each_page_is_decoded_and_encoded_once_for_each_size_that_is_asked_for(
    tmp_path: Path,
) -> None:
    corpus, run = [document(i) for i in range(6)], [pair(i, j) for i in range(8) for j in range(6)]
    queries = [query(i, image_max_pixels=4_096 if i == 7 else None) for i in range(8)]
    queries[6]["image"] = page(60)
    plan = plan_of(write_run(tmp_path, corpus, queries, run), 16, order="document")
    preprocessor, scorer = CountingPreprocessor(CONFIG), Scorer(CONFIG)
    engine = Engine(lambda _: preprocessor, lambda _: scorer)
    run_inline(plan, tmp_path / "out", engine=engine, config=CONFIG)
    assert plan.documents is not None and len(plan.documents.units) == 2
    assert preprocessor.num_decoded == 2 * 6 + 2  # two sizes; the query's own image once a unit
    assert scorer.vision_cache.num_misses == 2 * 6 + 1


indices = st.one_of(st.none(), st.integers(0, 6))
pairs = st.lists(st.builds(pair, indices, indices, st.one_of(st.none(), st.integers(1, 9))))


@settings(max_examples=30)
@given(pairs.filter(len), st.integers(1, 9), st.integers(1, 12))
def test_any_run_has_the_same_rows_in_both_orders(
    tmp_path_factory: Any, run: list[Any], unit_pairs: int, bucket_pairs: int
) -> None:
    directory = tmp_path_factory.mktemp("orders")
    corpus = [{"doc_id": f"d{i}", "text": f"text {i}"} for i in range(5)]
    queries = [query(i, max_length=-1 if i == 3 else None) for i in range(5)]
    options = write_run(directory, corpus, queries, run)
    rows = []
    for order in ("query", "document"):
        plan = plan_of(options, unit_pairs, order=order, bucket_pairs=bucket_pairs)
        run_inline(plan, directory / order)
        rows.append(score_rows(directory / order))
    assert rows[0] == rows[1]


# Planning


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 29), st.booleans()), max_size=150),
    st.integers(1, 40),
)
def test_every_pair_is_in_one_unit_and_documents_are_in_corpus_order(
    groups: list[int], named: list[tuple[int, int, bool]], unit_pairs: int
) -> None:
    num_documents = sum(groups)
    positions = np.array([position % num_documents for _, position, _ in named], np.int64)
    known = np.array([is_known for _, _, is_known in named], bool)
    zeros = np.zeros(len(named), np.int32)
    table = pa.table(
        {
            "query_file": zeros,
            "query_position": np.array([each[0] for each in named], np.int64),
            "doc_file": zeros,
            "doc_position": positions,
            "instruction": pa.nulls(len(named), pa.large_string()),
        }
    )
    footer = Footer(None, tuple(RowGroup(rows, {}) for rows in groups))
    corpus = OpenedTable(Table("corpus", (), {}), (footer,), {})
    plan = plan_documents(corpus, table, known, unit_pairs, [len(named)], 10)
    rows = [row for unit in plan.units for row in unit.pairs().to_pylist()]
    assert sorted(row["place"] for row in rows) == np.flatnonzero(known).tolist()
    order = [(row["doc_position"], row["place"]) for row in rows]
    assert order == sorted(order)
    assert all(row["doc_position"] == positions[row["place"]] for row in rows)
    assert all(unit.num_pairs <= 2 * unit_pairs for unit in plan.units)


def ends(groups: list[int], documents: list[int], unit_pairs: int) -> list[int]:
    return list(unit_ends(np.array(groups), np.array(documents), unit_pairs))


def test_units_end_with_row_groups_where_these_are_near_the_size() -> None:
    documents = list(range(0, 101, 5))
    assert ends([0, 15, 35, 50, 65, 100], documents, 20) == [15, 35, 50, 65, 100]
    assert ends([0, 5, 100], documents, 20) == [20, 40, 60, 100]


def test_a_document_of_very_many_pairs_is_cut() -> None:
    assert ends([0, 1_000], [0, 5, 990, 1_000], 300) == [5, 305, 605, 1_000]
    assert ends([0, 1_000], [0, 400, 1_000], 300) == [400, 1_000]


def test_buckets_are_whole_units() -> None:
    assert bucket_starts([0, 3, 6, 20, 22, 24], 6) == (0, 2, 3, 5)
    assert bucket_starts([0, 3], 10) == (0, 1)


def test_only_what_wanted_units_need_is_scored_again(tmp_path: Path) -> None:
    plan = plan_of(pages_and_queries(tmp_path, 12, 12, 3), 4, order="document")
    assert isinstance(plan.documents, DocumentPlan)
    units = plan.documents.units_with([1])
    needed = {row["doc_id"] for row in plan.units[1].pairs().to_pylist()}
    assert 0 < len(units) < len(plan.documents.units)
    for unit in plan.documents.units:
        named = {f"d{row['doc_position']}" for row in unit.pairs().to_pylist()}
        assert unit in units or not named & needed


def part_of(output: Output, unit: DocumentUnit, places: list[int]) -> None:
    """Write what scoring these places would give as a unit's part."""
    rows = pa.table({"place": places, "logit": [0.5] * len(places), "score": [0.6] * len(places)})
    for name in ("num_tokens", "num_visual_tokens", "is_truncated"):
        rows = rows.append_column(name, pa.array([0] * len(places)))
    for name in ("error_code", "error"):
        rows = rows.append_column(name, pa.nulls(len(places)))
    write_by_document(output, (0, 5, 10), unit, rows)


def test_a_bucket_has_its_rows_of_all_parts_by_place(tmp_path: Path) -> None:
    output = Output(Location.parse(str(tmp_path)))
    units = [DocumentUnit(i, b"", 1, 3) for i in range(2)]
    part_of(output, units[0], [7, 1, 9])
    part_of(output, units[1], [4, 0, 2])
    parts = [output.file(unit) for unit in units]
    assert read_bucket(parts, 0)["place"].to_pylist() == [0, 1, 2, 4]
    assert read_bucket(parts, 1)["place"].to_pylist() == [7, 9]
    part_of(output, units[1], [4, 0, 1])
    with pytest.raises(JobError, match="holds a pair twice"):
        read_bucket(parts, 0)
    Path(parts[0].path).write_bytes(b"PAR1 broken")
    with pytest.raises(JobError, match=r"part-000000\.parquet cannot be read .* delete it"):
        read_bucket(parts, 0)


def test_a_pair_that_no_part_has_is_never_left_out(tmp_path: Path) -> None:
    plan = plan_of(pages_and_queries(tmp_path, 4, 4, 2), order="document")
    assert plan.documents is not None
    output = Output(Location.parse(str(tmp_path / "out")))
    part_of(output, plan.documents.units[0], [0, 1, 2])
    parts = [output.file(plan.documents.units[0])]
    with pytest.raises(JobError, match="by_document/ lacks 5 pairs"):
        regroup(output, plan.input, parts, 0, [(0, plan.units[0])])
    assert not (tmp_path / "out" / "scores").exists()


# The choice


def reason(options: InputOptions | str, **more: Any) -> str:
    return str(plan_of(options, **more).choice)


def test_pages_that_queries_share_are_read_document_by_document(tmp_path: Path) -> None:
    options = pages_and_queries(tmp_path, 6, 6, 2)
    assert reason(options) == (
        "document-major: 12 pairs name 6 distinct documents, each is read and encoded once"
    )
    assert reason(options, order="query") == "query-major: asked for"


def test_pages_that_few_queries_share_are_read_query_by_query(tmp_path: Path) -> None:
    options = pages_and_queries(tmp_path, 12, 4, 3)
    assert reason(options).startswith("query-major: 12 pairs name 10 distinct documents, too few")
    assert reason(options, order="document").startswith("document-major: 12 pairs")


@pytest.mark.parametrize(
    ("doc", "order"),
    [
        ("text", "query"),
        ({"text": "text"}, "query"),
        (b"image", "document"),
        ({"bytes": b"image", "path": None}, "document"),
        ({"text": "text", "video": [{"path": "clip.mp4"}]}, "document"),
    ],
)
def test_auto_goes_by_the_corpus_schema(tmp_path: Path, doc: Any, order: str) -> None:
    write_table(tmp_path / "corpus.parquet", [{"doc_id": i, "doc": doc} for i in range(2)])
    write_table(tmp_path / "queries.parquet", [{"query_id": i, "query": "q"} for i in range(2)])
    run = [{"query_id": i, "doc_id": j} for i in range(2) for j in range(2)]
    write_table(tmp_path / "run.parquet", run)
    assert plan_of(str(tmp_path)).choice.order == order


def test_candidate_sets_and_pairs_have_no_document_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = write_sets(tmp_path / "sets.parquet", text_rows(2, 2))
    row = {"query_id": 1, "doc_id": 1, "query": "q", "doc": "d"}
    pairs = write_table(tmp_path / "pairs.parquet", [row])
    given = [f"--output={tmp_path / 'out'}", f"--model={TINY}"]
    assert main(["rerank", sets, *given, "--order=document"]) == 2
    stderr = capsys.readouterr().err
    assert "--order document needs a corpus" in stderr and "with each query" in stderr
    with pytest.raises(UsageError, match="pairs carry their document in each row"):
        plan_of(pairs, order="document")
    assert main(["rerank", sets, *given, "--order=page"]) == 2
    assert not (tmp_path / "out").exists()


# On Ray


class NotingPreprocessor(standin.StandInPreprocessor):
    """A stand-in that notes each document that it opens, and hands on which ones pairs need."""

    def __init__(self, log: Path, config: RerankerConfig) -> None:
        super().__init__(config)
        self._log = log

    def open_document(self, document: Any, name: str, watch: Any = None) -> Any:
        with self._log.open("a") as stream:
            stream.write(f"{document.texts[0]}\n")
        return super().open_document(document, name)

    def prepare_pairs(self, pairs: Any) -> Any:
        pairs = list(pairs)
        prepared = super().prepare_pairs(pairs)
        texts = {document.texts[0] for _, document in pairs}
        visuals = tuple(Visual(np.empty(0), text.encode()) for text in texts)
        return replace(prepared, visuals=visuals)


class CachingScorer(standin.StandInScorer):
    """A stand-in that looks up each document of a prepared set, in a cache without a bound."""

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__(config)
        self._known: set[bytes] = set()
        self.vision_cache = SimpleNamespace(num_hits=0, num_misses=0)

    def score(self, sets: list[Any], progressed: Any) -> Any:
        for keys in ({visual.key for visual in prepared.visuals} for prepared in sets):
            self.vision_cache.num_hits += len(keys & self._known)
            self.vision_cache.num_misses += len(keys - self._known)
            self._known |= keys
        time.sleep(0.1)  # so that the other actor has its share
        return super().score(sets, progressed)


class NotingScorer(standin.StandInScorer):
    """A stand-in that notes how many pairs it scores."""

    def __init__(self, log: Path, config: RerankerConfig) -> None:
        super().__init__(config)
        self._log = log

    def score(self, sets: list[Any], progressed: Any) -> Any:
        with self._log.open("a") as stream:
            stream.write(f"{sum(prepared.num_pairs for prepared in sets)}\n")
        return super().score(sets, progressed)


def by_value(build: Callable[..., Any], *arguments: Any) -> Any:
    """`build` for workers that cannot import this module."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return functools.partial(build, *arguments)


def test_each_document_is_read_and_encoded_once_on_two_actors(
    tmp_path: Path, ray_address: str
) -> None:
    from shardrank.jobs.run.execution import Run
    from shardrank.jobs.run.pipeline import Workers
    from shardrank.jobs.run.pool import Pool

    plan = plan_of(pages_and_queries(tmp_path, 20, 24, 5), 12)
    assert plan.documents is not None and len(plan.documents.units) > 5
    log, lookups = tmp_path / "log", []
    engine = Engine(by_value(NotingPreprocessor, log), by_value(CachingScorer))
    output = Output(Location.parse(str(tmp_path / "out")))

    class CountingRun(Run):
        num_ticks = 0

        def scored(self, rows: pa.Table) -> None:
            lookups.append(lookups_of(rows))

        def written(self, rows: pa.Table) -> None: ...

        def tick(self) -> None:
            self.num_ticks += 1

    workers = Workers(CONFIG, engine, Pool(2, 0.25, 0))
    manifest, budget = Manifest(output, {}, {}), Budget(MaxErrors(), 120)
    remaining, shown = find_remaining(plan, output, ()), Display(is_live=False)
    run = CountingRun(plan, remaining, workers, manifest, budget, shown, lambda: None)
    run.score()
    num_ticks = run.num_ticks
    run.verify()
    assert run.counts.num_failed == 0
    assert run.num_ticks > num_ticks  # so that a lost lease or Ctrl-C ends it
    assert sum(misses for _, misses in lookups) == 20
    opened = log.read_text().splitlines()
    assert len(opened) == len(set(opened)) == 20


def run_job(options: InputOptions, output: Path, log: Path) -> Summary:
    log.touch()
    engine = Engine(standin.StandInPreprocessor, by_value(NotingScorer, log))
    return rerank(JobOptions(str(output), options, unit_pairs=12), CONFIG, engine)


def num_scored(log: Path) -> int:
    return sum(map(int, log.read_text().split()))


def test_a_job_that_was_cut_goes_on_where_it_was(tmp_path: Path, ray_address: str) -> None:
    options = pages_and_queries(tmp_path, 20, 24, 5)
    out, log = tmp_path / "out", tmp_path / "log"
    blocker = out / "scores" / "part-000004.parquet"  # regrouping fails where this directory is
    blocker.mkdir(parents=True)
    with pytest.raises(JobError):
        run_job(options, out, log)
    parts = sorted((out / "by_document").glob("part-*"))
    assert len(parts) == 7 and num_scored(log) == 120

    for path in (*parts[3:], *(out / "scores").glob("part-00000[0-3]*")):
        path.unlink()  # as if the first phase had been cut after three parts
    kept = {path: (path.stat().st_mtime_ns, pq.read_metadata(path).num_rows) for path in parts[:3]}
    with pytest.raises(JobError):
        run_job(options, out, tmp_path / "second")
    assert num_scored(tmp_path / "second") == 120 - sum(rows for _, rows in kept.values())
    assert all(path.stat().st_mtime_ns == mtime for path, (mtime, _) in kept.items())

    blocker.rmdir()  # the second phase was cut after four score files
    written = {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    assert len(written) == 4
    summary = run_job(options, out, tmp_path / "third")
    assert num_scored(tmp_path / "third") == 0
    assert not summary.was_finished and summary.manifest.job["order"] == "document"
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "manifest.json", "scores"]
    run_inline(plan_of(options, 12, order="query"), tmp_path / "inline")
    assert score_rows(out) == score_rows(tmp_path / "inline")
    assert summary.manifest.vision_cache_hits is None  # the stand-in has no such cache
    with pytest.raises(UsageError, match='order was "document" and is now "query"'):
        rerank(JobOptions(str(out), options, unit_pairs=12, order="query"), CONFIG)


def test_errors_are_scored_again_before_and_after_a_job_is_finished(
    tmp_path: Path, without_ray: None
) -> None:
    pages, out = tmp_path / "pages", tmp_path / "out"
    pages.mkdir()
    corpus = [document(i, image={"bytes": None, "path": f"{i}.png"}) for i in range(6)]
    run = [pair(i, j, j + 1) for i in range(8) for j in range(6)]
    options = write_run(tmp_path, corpus, [query(i) for i in range(8)], run)
    config = replace(CONFIG, media_root=str(pages))

    def mend(index: int) -> None:
        (pages / f"{index}.png").write_bytes(page(index)["bytes"])

    def score(*codes: str, max_errors: str = "0") -> Summary:
        limit = MaxErrors.parse(max_errors)
        job = JobOptions(str(out), options, unit_pairs=12, max_errors=limit, retry_errors=codes)
        return rerank(job, config)

    for index in range(4):
        mend(index)
    with pytest.raises(TooManyErrors):
        score()
    assert list((out / "by_document").iterdir()) and not (out / "scores").exists()
    mend(4)
    summary = score("media_not_found", max_errors="8")
    assert summary.manifest.errors == {"media_not_found": 8}
    assert not (out / "by_document").exists()
    mend(5)
    summary = score("all")
    assert not summary.was_finished and summary.manifest.errors == {}
    assert {row["doc_id"] for row in score_rows(out) if row["score"] is not None} == {
        f"d{i}" for i in range(6)
    }
    assert score("all").was_finished


def test_ids_that_are_wrong_wholesale_stop_the_job_before_anything_is_scored(
    tmp_path: Path,
) -> None:
    run = [pair(i, j) for i in range(12) for j in range(20)]
    options = write_run(
        tmp_path, [document(i) for i in range(6)], [query(i) for i in range(12)], run
    )
    out = tmp_path / "out"
    with pytest.raises(TooManyErrors, match="168 of 240 pairs .*168 x document_not_found"):
        rerank(JobOptions(str(out), options, order="document"), CONFIG, standin.make_engine())
    # Before Ray was asked for: whoever comes next sees whose directory it is.
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


def test_the_vision_caches_lookups_are_counted_over_runs_and_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = Manifest(Output(Location.parse("out")), {}, {}, pairs_per_s=1.0)
    manifest.counts = Counts(1, 1_200, 0, 0, 9, 8)
    print_summary(Summary("out", manifest), Console(width=120))
    assert "vision cache" not in capsys.readouterr().out
    manifest.add_lookups(1_000, 50)
    manifest.add_lookups(140, 10)
    print_summary(Summary("out", manifest), Console(width=120))
    line = "1,140 of 1,200 lookups hit (95.0%), 60 visuals encoded"
    assert line in capsys.readouterr().out
    assert manifest.vision_cache_hit_rate == 0.95
