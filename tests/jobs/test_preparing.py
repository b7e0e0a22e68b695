import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray

from shardrank.actors.config import RerankerConfig
from shardrank.actors.media import video_process
from shardrank.actors.preprocessor import Preprocessor
from shardrank.jobs.inputs import tables
from shardrank.jobs.inputs.forms import InputOptions, open_job_input
from shardrank.jobs.run.attempts import MAX_DEATHS, Attempt, AttemptLog
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.run.execution import _attempt_log
from shardrank.jobs.run.pipeline import packed
from shardrank.jobs.run.preparing import (
    CHUNK_BYTES,
    CHUNK_PAIRS,
    SLICE_MEDIA_DOCUMENTS,
    prepare_chunks,
    prepare_unit,
)
from shardrank.jobs.units.plan import Plan, plan_units
from tests.support.engine import TINY
from tests.support.job_cases import (
    CONFIG,
    candidate,
    image,
    plan_of,
    query_row,
    text,
    text_rows,
    write_sets,
    write_table,
)


class Recorder:
    """A preprocessor whose sets take `document_bytes` a document."""

    def __init__(self, document_bytes: int) -> None:
        self.document_bytes = document_bytes
        self.sets: list[list[Any]] = []

    def open_query(self, query: Any, instruction: Any, options: Any, watch: Any) -> Any:
        return query

    def open_document(self, document: Any, name: str, watch: Any = None) -> Any:
        return document

    def prepare_pairs(self, pairs: Any) -> Any:
        self.sets.append(list(pairs))
        num_pairs = len(self.sets[-1])
        return SimpleNamespace(num_pairs=num_pairs, size_bytes=num_pairs * self.document_bytes)


def chunks_of(path: str, preprocessor: Recorder) -> list[tuple[list[dict[str, Any]], list[Any]]]:
    """(rows, prepared sets) of each chunk, after a check of their numbering."""
    plan = plan_of(path, 1_000_000)
    (unit,) = plan.units
    tables = list(prepare_chunks(plan.input, unit, preprocessor))
    assert [table["chunk"][0].as_py() for table in tables] == list(range(len(tables)))
    assert [table["is_last"][0].as_py() for table in tables] == [False] * (len(tables) - 1) + [True]
    return [
        (
            rows_of(table),
            pickle.loads(table["prepared"][0].as_buffer()),
        )
        for table in tables
    ]


def test_chunks_stay_small_whatever_a_query_brings(tmp_path: Path) -> None:
    pages = [candidate(f"d{i}", image(b"page")) for i in range(300)]
    path = write_sets(tmp_path / "sets.parquet", [query_row(i, pages) for i in range(2)])
    preprocessor = Recorder(document_bytes=4 << 20)
    chunks = chunks_of(path, preprocessor)
    slice_bytes = SLICE_MEDIA_DOCUMENTS * preprocessor.document_bytes
    for _, prepared in chunks:
        assert sum(each.size_bytes for each in prepared) < CHUNK_BYTES + slice_bytes
    assert max(map(len, preprocessor.sets)) == SLICE_MEDIA_DOCUMENTS
    places = [(row["query_index"], row["doc_index"]) for rows, _ in chunks for row in rows]
    assert places == [(i, j) for i in range(2) for j in range(300)]


def test_a_unit_is_cut_again_where_it_was_cut_whatever_can_be_read_then(tmp_path: Path) -> None:
    """Ray has kept the first chunks of a worker that died, and takes only the later ones anew."""
    pages = [candidate(f"d{i}", image(b"page")) for i in range(100)]
    path = write_sets(tmp_path / "sets.parquet", [query_row(i, pages) for i in range(2)])
    plan = plan_of(path, 1_000_000)
    log = AttemptLog()

    def rows(document_bytes: int) -> list[list[Any]]:
        attempt = Attempt(log, ("prepare", 0))
        tables = prepare_chunks(plan.input, plan.units[0], Recorder(document_bytes), attempt)
        return [rows_of(table) for table in tables]

    whole = rows(document_bytes=4 << 20)
    assert len(whole) > 8
    assert rows(document_bytes=1) == rows(document_bytes=64 << 20) == whole


def rows_of(table: pa.Table) -> list[Any]:
    return pa.ipc.open_stream(table["rows"][0].as_buffer()).read_all().to_pylist()


def test_text_chunks_are_bounded_by_pairs(tmp_path: Path) -> None:
    path = write_sets(tmp_path / "sets.parquet", text_rows(2, 5_000))
    sizes = [len(rows) for rows, _ in chunks_of(path, Recorder(document_bytes=10))]
    assert sum(sizes) == 10_000
    assert max(sizes) < CHUNK_PAIRS + 512


def test_rows_known_to_be_bad_are_never_prepared(tmp_path: Path) -> None:
    documents = [candidate("a", text("a")), candidate("a", text("b")), candidate(None, text("c"))]
    preprocessor = Recorder(document_bytes=1)
    ((rows, prepared),) = chunks_of(
        write_sets(tmp_path / "sets.parquet", [query_row(1, documents), query_row(2, [])]),
        preprocessor,
    )
    assert [row["error_code"] for row in rows] == [
        None,
        "duplicate_id",
        "null_id",
        "empty_candidates",
    ]
    assert [[document.texts for _, document in each] for each in preprocessor.sets] == [[("a",)]]
    assert [each.num_pairs for each in prepared] == [1]


class Deadly(BaseException):
    """As if the process ended here: nothing catches it, and the log hears no more of it."""


class Log(AttemptLog):
    is_dead = False

    def begin(self, work: Any) -> Any:
        self.is_dead = False
        return super().begin(work)

    def at(self, work: Any, step: Any, hangs: bool = False) -> None:
        if not self.is_dead:
            super().at(work, step, hangs)


def prepared_until_it_gives_up(plan: Plan, log: AttemptLog, most: int = 20) -> int:
    """How many attempts died before there was no more to do."""
    batch = pa.table({"unit": pa.array([pickle.dumps(plan.units[0])], pa.binary())})
    engine = packed(Engine(lambda config: Recorder(1), lambda config: None))  # type: ignore[arg-type, return-value]
    for number in range(most):
        try:
            list(prepare_unit(batch, plan.input, engine, CONFIG, log, 60.0))
            return number
        except Deadly:
            continue
    return most


@pytest.mark.parametrize("order", ["query", "document"])
@pytest.mark.parametrize("table", ["queries", "corpus"])
def test_a_table_that_kills_whoever_reads_it_fails_its_units_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, order: str
) -> None:
    queries = [{"query_id": f"q{i}", "text": "a"} for i in range(4)]
    corpus = [{"doc_id": f"d{i}", "text": "b"} for i in range(4)]
    ids = [{"query_id": f"q{i}", "doc_id": f"d{i}"} for i in range(4)]
    options = InputOptions(
        run=write_table(tmp_path / "run.parquet", ids),
        queries=write_table(tmp_path / "queries.parquet", queries),
        corpus=write_table(tmp_path / "corpus.parquet", corpus),
    )
    plan = plan_units(open_job_input(options), 100, order)
    whole = tables.Table.fetch

    def deadly(self: tables.Table, *arguments: Any) -> Any:
        for number, row in enumerate(whole(self, *arguments)):
            if self.name == table and number == 2:
                log.is_dead = True
                raise Deadly
            yield row

    monkeypatch.setattr(tables.Table, "fetch", deadly)
    log = Log()
    units = plan.documents.units if plan.documents else plan.units
    plan = replace(plan, units=tuple(units))
    assert prepared_until_it_gives_up(plan, log) == MAX_DEATHS + 1
    assert "died 2 times" in log.failures()[0]


DIES = """
import os, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send(None)
connection.poll(None)
with open({log!r}, "a") as log:
    log.write("asked\\n")
os._exit(1)
"""
"""A decoder's process, of whatever file it is asked for."""


def test_a_file_that_costs_a_decoder_costs_it_once_in_a_job(
    tmp_path: Path, ray_address: str
) -> None:
    """Two workers of one run, in processes of their own."""
    asked = tmp_path / "asked"
    startup = DIES.format(log=str(asked))

    class Worker:
        def prepare(self, batch: pa.Table, job_input: Any, log: Any) -> list[pa.Table]:
            video_process._STARTUP = startup
            config = RerankerConfig(str(TINY), media_root=str(tmp_path))
            engine = packed(Engine(Preprocessor, lambda config: None))  # type: ignore[arg-type, return-value]
            return list(prepare_unit(batch, job_input, engine, config, log, 60.0))

    (tmp_path / "clip.mp4").write_bytes(b"a clip")
    path = tmp_path / "pairs.jsonl"
    line = '{"query_id": %d, "doc_id": "d", "query": "q", "doc": {"video": "clip.mp4"}}\n'
    path.write_text("".join(line % number for number in range(2)))
    plan = plan_of(str(path), 1)
    said = []
    with _attempt_log() as log:
        for unit in plan.units:
            worker = ray.remote(num_cpus=0)(Worker).remote()
            batch = pa.table({"unit": pa.array([pickle.dumps(unit)], pa.binary())})
            (table,) = ray.get(worker.prepare.remote(batch, plan.input, log))
            ((pair,),) = [prepared.pairs for prepared in pickle.loads(table["prepared"][0].as_py())]
            said.append(str(pair))
            ray.kill(worker)
    assert said == [
        "clip.mp4: the decoder's process died of it, twice",
        "clip.mp4: the decoder's process died of it, twice (not tried again)",
    ]
    assert asked.read_text() == "asked\n" * 2  # by a child of the first worker, and a second
