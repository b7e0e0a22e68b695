"""Small inputs of the job in all forms, and the job's steps without Ray, for the tests."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from shardrank.actors.config import RerankerConfig
from shardrank.jobs import cluster
from shardrank.jobs.inputs.forms import InputOptions, open_job_input
from shardrank.jobs.outputs.by_document import regroup, write_by_document
from shardrank.jobs.outputs.files import Output, UnitCollector, read_scores, write_unit
from shardrank.jobs.outputs.manifest import Counts
from shardrank.jobs.outputs.verify import verify_units
from shardrank.jobs.run import execution
from shardrank.jobs.run.attempts import AttemptLog, Attempts
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.run.pipeline import Workers
from shardrank.jobs.run.pool import Pool
from shardrank.jobs.run.preparing import prepare_chunks, prepare_documents, prepare_unit
from shardrank.jobs.run.scoring import Score
from shardrank.jobs.storage import Location
from shardrank.jobs.units.documents import DocumentPlan
from shardrank.jobs.units.plan import Plan, plan_units
from shardrank.jobs.units.reading import QueryRow, read_unit
from tests.support import standin

CONFIG = RerankerConfig(model="stand-in", num_threads=1)


@dataclass(frozen=True)
class Here:
    """An engine for this process, of objects that a test looks at; pickled they would be others."""

    engine: Engine

    def unpacked(self) -> Engine:
        return self.engine


MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CONTENT = pa.struct([("text", pa.string()), ("image", MEDIA)])
CANDIDATE = pa.struct(
    [("doc_id", pa.string()), ("doc", CONTENT), ("score", pa.float64()), ("rank", pa.int32())]
)
SETS = pa.schema(
    [("query_id", pa.int64()), ("query", pa.string()), ("candidates", pa.list_(CANDIDATE))]
)


def text(value: str) -> dict[str, Any]:
    return {"text": value, "image": None}


def image(content: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"text": None, "image": {"bytes": content, "path": path}}


def candidate(doc_id: str | None, doc: Any, rank: int | None = None) -> dict[str, Any]:
    return {"doc_id": doc_id, "doc": doc, "score": None, "rank": rank}


def query_row(query_id: int | None, candidates: Any, query: str | None = "which?") -> Any:
    return {"query_id": query_id, "query": query, "candidates": candidates}


def text_rows(num_queries: int, num_documents: int) -> list[dict[str, Any]]:
    """Query i has documents d0, d1, ... whose texts are shared by all queries."""
    return [
        query_row(
            i,
            [candidate(f"d{j}", text(f"document {j}"), j + 1) for j in range(num_documents)],
            f"query {i}",
        )
        for i in range(num_queries)
    ]


def write_sets(path: Path, rows: list[dict[str, Any]], row_group_size: int = 1_000) -> str:
    pq.write_table(pa.Table.from_pylist(rows, schema=SETS), path, row_group_size=row_group_size)
    return str(path)


def write_table(path: Path, rows: list[dict[str, Any]], row_group_size: int | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return str(path)


def write_text(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def plan_of(options: InputOptions | str, unit_pairs: int = 4_096, **more: Any) -> Plan:
    if isinstance(options, str):
        options = InputOptions(options)
    return plan_units(open_job_input(options), unit_pairs, **more)


def read_all(options: InputOptions | str) -> list[QueryRow]:
    plan = plan_of(options)
    return [row for unit in plan.units for row in read_unit(plan.input, unit)]


def run_inline(
    plan: Plan,
    directory: Path,
    with_rankings: bool = False,
    engine: Engine | None = None,
    config: RerankerConfig = CONFIG,
) -> tuple[Output, Counts]:
    """What the job does, in this process and one chunk after the other; scored by a stand-in."""
    output = Output(Location.parse(str(directory)), with_rankings)
    engine = engine or standin.make_engine()
    preprocessor = engine.preprocessor(config)
    score = Score(Here(engine), config, Pool(1, 1, 0))
    if plan.documents is not None:
        _run_documents_inline(plan, plan.documents, output, preprocessor, score)
        return output, verify_units(plan.input, output, plan.units)
    collector = UnitCollector()
    for unit in plan.units:
        for chunk in prepare_chunks(plan.input, unit, preprocessor):
            for _, rows in collector.add(score(chunk)):
                write_unit(output, plan.input, unit, rows)
    return output, verify_units(plan.input, output, plan.units)


def _run_documents_inline(
    plan: Plan, documents: DocumentPlan, output: Output, preprocessor: Any, score: Score
) -> None:
    collector = UnitCollector()
    for unit in documents.units:
        for chunk in prepare_documents(plan.input, unit, preprocessor):
            for _, rows in collector.add(score(chunk)):
                write_by_document(output, documents.bucket_places, unit, rows)
    parts = [output.file(unit) for unit in documents.units]
    for bucket, (low, high) in enumerate(pairwise(documents.bucket_starts)):
        units = [(documents.unit_starts[i], plan.units[i]) for i in range(low, high)]
        regroup(output, plan.input, parts, bucket, units)


class _RayHere:
    """Ray as execution.py uses it: a task is done in this process, as it is begun."""

    def remote(self, **_: Any) -> Callable[..., Any]:
        return _TaskHere

    def put(self, value: Any) -> Any:
        return value

    def get(self, value: Any) -> Any:
        return value

    def wait(self, pending: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return pending, []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.cluster_resources()}]


@dataclass(frozen=True)
class _TaskHere:
    remote: Callable[..., Any]


def _score_units_here(
    units: Sequence[Any], job_input: Any, workers: Workers, log: Attempts
) -> Iterator[pa.Table]:
    engine: Any = Here(workers.engine)
    score = Score(engine, workers.config, workers.pool, log)
    for unit in units:
        batch = pa.table({"unit": pa.array([pickle.dumps(unit)])})
        for chunk in prepare_unit(batch, job_input, engine, workers.config, log, 300.0):
            yield score(chunk)


def workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rerank` is the real one, but for what goes through Ray: workers are this process, one after
    the other.
    """
    here = _RayHere()
    monkeypatch.setattr(cluster, "connected", lambda _: nullcontext())
    monkeypatch.setattr(ray, "cluster_resources", here.cluster_resources)
    monkeypatch.setattr(ray, "nodes", here.nodes)
    monkeypatch.setattr(execution, "ray", here)
    monkeypatch.setattr(execution, "_attempt_log", lambda: nullcontext(AttemptLog()))
    monkeypatch.setattr(execution, "score_units", _score_units_here)


def score_rows(directory: Path | str) -> list[dict[str, Any]]:
    """All rows of the score files, in the files' order."""
    files = sorted((Path(directory) / "scores").glob("*.parquet"))
    return [row for file in files for row in read_scores(Location("", str(file))).to_pylist()]
