"""The jobs that are swept: an input, as the command line has it, and what an undisturbed run gives.

All are scored in pieces of the same size, whose numbers tell the file that a piece belongs to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from shardrank.actors.config import RerankerConfig
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.files import read_scores
from shardrank.jobs.run.engine import Engine
from shardrank.jobs.storage import Location, write_atomically
from tests.faults import sweep_engine
from tests.support.job_cases import (
    candidate,
    plan_of,
    query_row,
    run_inline,
    text,
    write_sets,
    write_table,
)

TINY = Path(__file__).parent.parent / "golden" / "tiny"
CONFIG = RerankerConfig(model=str(TINY), num_threads=1)

GROUPS_OF_UNIT = 2
GROUP_PAIRS = 40
"""Of a query with its documents or, in document-major order, of a document with its queries."""
UNIT_PAIRS = GROUPS_OF_UNIT * GROUP_PAIRS


@dataclass(frozen=True, slots=True)
class Store:
    """A prefix on an object store; `query` is how its server is found."""

    prefix: str
    query: str

    def uri(self, name: str) -> str:
        return f"{self.prefix}/{name}{self.query}"


@dataclass(frozen=True, slots=True)
class Job:
    """`scores` and `parts` are files below the output; only a document-major job has parts."""

    inputs: tuple[str, ...]
    expected: pa.Table
    scores: tuple[str, ...]
    parts: tuple[str, ...] = ()
    engine: str = "stand-in"

    @property
    def scored(self) -> tuple[str, ...]:
        """The files that are written as pairs are scored; the others are made of them."""
        return self.parts or self.scores

    @property
    def num_files(self) -> int:
        return len(self.parts) + len(self.scores)

    @property
    def num_pairs(self) -> int:
        return len(self.scores) * UNIT_PAIRS

    def file_of(self, query: int, document: int) -> str:
        """Where the pairs of a piece are written when they are scored."""
        group = document if self.parts else query
        return self.scored[group // GROUPS_OF_UNIT]


def make_job(directory: Path, num_units: int, engine: Engine | None = None) -> Job:
    """Candidate sets. `engine`: the real one, which the command line itself takes; otherwise the
    sweep's own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # With the sweep's engine a chunk's rows take more than Ray keeps beside its owner.
    long = 3_000 if engine is None else 1
    documents = [
        candidate(f"d{i}-{str(i % 10) * long}", text(f"document {i}"), i + 1)
        for i in range(GROUP_PAIRS)
    ]
    queries = [query_row(i, documents, f"query {i}") for i in range(num_units * GROUPS_OF_UNIT)]
    sets = write_sets(directory / "sets.parquet", queries, GROUPS_OF_UNIT)
    name = "stand-in" if engine is None else "real"
    engine = engine or sweep_engine.make_engine(None)
    run_inline(plan_of(sets, UNIT_PAIRS), directory / "undisturbed", engine=engine, config=CONFIG)
    scores = file_names("scores", num_units)
    return Job((sets,), read_rows(directory / "undisturbed", scores), scores, engine=name)


def make_document_job(directory: Path, num_units: int) -> Job:
    """A run in document-major order: as many documents as queries, each in pairs with so many."""
    num = num_units * GROUPS_OF_UNIT  # no multiple of 7, and above 40: a query's are distinct
    run = [
        {"query_id": i, "doc_id": f"d{(i + 7 * j) % num}", "rank": j + 1}
        for i in range(num)
        for j in range(GROUP_PAIRS)
    ]
    tables = {
        "run": run,
        "queries": [{"query_id": i, "text": f"query {i}"} for i in range(num)],
        "corpus": [{"doc_id": f"d{i}", "text": f"document {i}"} for i in range(num)],
    }
    paths = {
        name: write_table(directory / f"{name}.parquet", rows, GROUPS_OF_UNIT)
        for name, rows in tables.items()
    }
    plan = plan_of(
        InputOptions(**paths),
        UNIT_PAIRS,
        order="document",
        bucket_pairs=sweep_engine.BUCKET_PAIRS,
    )
    assert plan.documents and len(plan.documents.units) == len(plan.units) == num_units
    engine = sweep_engine.make_engine(None)
    run_inline(plan, directory / "undisturbed", engine=engine, config=CONFIG)
    inputs = (*(f"--{name}={path}" for name, path in paths.items()), "--order=document")
    scores = file_names("scores", num_units)
    rows = read_rows(directory / "undisturbed", scores)
    return Job(inputs, rows, scores, file_names("by_document", num_units))


def on_store(job: Job, store: Store) -> Job:
    """The same candidate sets, read from there."""
    (sets,) = job.inputs
    uri = store.uri("sets.parquet")
    write_atomically(Location.parse(uri), Path(sets).read_bytes())
    return replace(job, inputs=(uri,))


def file_names(folder: str, num_units: int) -> tuple[str, ...]:
    return tuple(f"{folder}/part-{i:06}.parquet" for i in range(num_units))


def read_rows(output: Location | Path, files: Sequence[str]) -> pa.Table:
    if isinstance(output, Path):
        output = Location("", str(output))
    tables = [read_scores(output.child(file)) for file in files]
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
