"""The first stage from end to end: open, filter, search, and write the run."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.interruption import interruptible
from shardrank.jobs.outputs.files import EMBEDDINGS
from shardrank.jobs.retrieve.filter import duckdb, matching_ids
from shardrank.jobs.retrieve.index import Index, Kind, faiss, recall
from shardrank.jobs.retrieve.inputs import check_fit, instruction_of, open_mapped, open_vectors
from shardrank.jobs.retrieve.run_file import check_run_place, write_run
from shardrank.jobs.retrieve.vectors import Tally, Vectors
from shardrank.jobs.run.progress import Display, Step, display, duration
from shardrank.jobs.storage import Location, would_read

_PASS_QUERIES = 16_384
_PASS_BYTES = 512 << 20
_CANDIDATE_BYTES = 128
"""Of a candidate with its id, twice and while the best are found, at most about this."""
_NUM_SAMPLED = 200


@dataclass(frozen=True, slots=True)
class RetrievalOptions:
    """What the command says. recall: what an index is to find of the exact result."""

    queries: str
    embeddings: str
    output: str
    top_k: int = 100
    corpus: str | None = None
    where: str | None = None
    maps: tuple[str, ...] = ()
    index: Kind | None = None
    recall: float = 0.95
    num_threads: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("--top-k", self.top_k), ("--threads", self.num_threads)):
            if value is not None and value < 1:
                raise UsageError(f"{option} must be above zero, got {value}")
        if not 0 < self.recall <= 1:
            raise UsageError(f"--recall must be above 0 and at most 1, got {self.recall:g}")
        if (self.where is None) != (self.corpus is None):
            raise UsageError(
                "--where and --corpus go together: a condition, and the table it is of"
            )
        if self.index is not None and self.address is not None:
            raise UsageError("--index is in this process's memory: leave --address out")
        check_run_place(self.output)


@dataclass(slots=True)
class Retrieval:
    """What was searched, and what came of it. wanted: ids that the filter left, if there is one."""

    output: str
    instruction: str | None = None
    queries: Tally = field(default_factory=Tally)
    vectors: Tally = field(default_factory=Tally)
    num_rows: int = 0
    wanted: int | None = None
    seconds: float = 0.0
    index: Kind | None = None
    effort: int | None = None
    recall: float | None = None

    @property
    def num_missing(self) -> int:
        """Ids that the filter left and --embeddings does not have."""
        found = self.vectors.num_rows - self.vectors.num_unwanted
        return 0 if self.wanted is None else max(0, self.wanted - found)


@dataclass(slots=True)
class Searching(Step):
    """Vectors that were searched, once for each pass over them."""

    def line(self) -> str:
        per_s = self.num / max(time.monotonic() - self.started, 1e-3)
        left = "--" if not self.num else duration(((self.total or 0) - self.num) / per_s)
        return f"{Step.line(self)} · {per_s:,.0f} {self.noun}/s · ETA {left}"


def retrieve(options: RetrievalOptions) -> Retrieval:
    """Search, and write the run. Raises UsageError before a vector is read, or JobError."""
    with interruptible() as check_interruption, display() as shown:
        shown.show(Step("reading footers"))
        queries, of_queries = open_vectors("query", options.queries, options.maps)
        documents, of_documents = open_vectors("document", options.embeddings, options.maps)
        check_fit(queries, documents, of_queries, of_documents)
        _check_apart(options, of_queries is not None, of_documents is not None)
        if options.index is not None:
            faiss()
        found = Retrieval(options.output)
        found.instruction = instruction_of(of_queries) if of_queries else None
        began = time.monotonic()
        documents = _filtered(documents, options, found, shown)
        with _cluster(options, shown):
            check_interruption()  # ray.init has set a handler of its own
            search = _Passes(options, queries, documents, found, shown)
            found.output = str(write_run(options.output, search.schema, search.tables()))
        found.seconds = time.monotonic() - began
        return found


def _check_apart(options: RetrievalOptions, *are_jobs: bool) -> None:
    """Raises UsageError for a run that would be input the next time, or in the place of one.

    are_jobs: whether --queries is the output of a job, and whether --embeddings is.
    """
    output = Location.parse(options.output)
    for uri, is_job in zip(
        (options.queries, options.embeddings, options.corpus), (*are_jobs, False), strict=True
    ):
        place = Location.parse(uri or "")
        place = place.child(EMBEDDINGS) if is_job else place
        if uri is not None and (place == output or would_read(place, output.parent)):
            raise UsageError(f"--output {options.output} is inside {uri}: name another place")


def _filtered(
    documents: Vectors, options: RetrievalOptions, found: Retrieval, shown: Display
) -> Vectors:
    if options.where is None or options.corpus is None:
        return documents
    duckdb()
    shown.show(Step("filtering the corpus"))
    corpus = open_mapped("corpus", options.corpus, options.maps)
    kind = corpus.types["doc_id"]
    if pt.is_integer(kind) != pt.is_integer(documents.id_type):
        raise UsageError(
            f"doc_id is {kind} in --corpus and {documents.id_type} in --embeddings: "
            "ids of two kinds are never equal"
        )
    wanted = matching_ids(corpus, options.where)
    found.wanted = len(wanted)
    return replace(documents, wanted=wanted)


def _cluster(options: RetrievalOptions, shown: Display) -> AbstractContextManager[None]:
    if options.address is None:
        return nullcontext()
    from shardrank.jobs.cluster import connected  # Ray takes seconds to import

    shown.show(Step(f"joining the Ray cluster at {options.address}"))
    return connected(options.address)


class _Passes:
    """The search: all vectors are read once for each of these parts of the queries."""

    def __init__(
        self,
        options: RetrievalOptions,
        queries: Vectors,
        documents: Vectors,
        found: Retrieval,
        shown: Display,
    ) -> None:
        self._options, self._queries, self._documents = options, queries, documents
        self._found, self._shown = found, shown
        self._num_threads = options.num_threads or os.cpu_count() or 1
        self._index: Index | None = None
        self._seen: set[int | str] = set()
        self.schema = pa.schema(
            [("query_id", queries.id_type), ("doc_id", documents.id_type)]
            + [("rank", pa.int32()), ("score", pa.float32())]
        )

    def tables(self) -> Iterator[pa.Table]:
        """The run's rows, pass by pass, in the queries' order."""
        size_bytes = 4 * self._queries.dimensions + _CANDIDATE_BYTES * self._options.top_k
        most = max(1, min(_PASS_QUERIES, _PASS_BYTES // size_bytes))
        num_passes = -(-self._queries.num_rows // most)
        stage = Searching("searching", num_passes * self._documents.num_rows, "vectors")
        for ids, matrix in self._parts(most):
            self._check_new(ids)
            best = self._best(matrix, stage)
            self._check_once(best)
            self._found.num_rows += best.num_rows
            columns = [ids.take(best["query"].combine_chunks()), best["id"]]
            yield pa.table([*columns, best["rank"], best["score"]], schema=self.schema)
        self._shown.finish(stage)

    def _parts(self, most: int) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Ids and vectors of about so many queries."""
        held: list[tuple[pa.Array, np.ndarray]] = []
        num = 0
        for block in self._queries.blocks(self._queries.pieces, self._found.queries):
            for start in range(0, len(block.ids), most):
                ids = block.ids.slice(start, most)
                held.append((ids, block.matrix[start : start + len(ids)]))
                num += len(ids)
                if num >= most:
                    yield _joined(held)
                    held, num = [], 0
        if held:
            yield _joined(held)

    def _best(self, matrix: np.ndarray, stage: Step) -> pa.Table:
        found, top_k = self._found, self._options.top_k
        if self._options.index is None:
            best, tally = self._exact(matrix, stage)
            found.vectors = tally
            return best
        if self._index is None:
            self._index = self._built(self._options.index, matrix)
        self._shown.show(Step("searching the index"))
        return self._index.search(matrix, top_k)

    def _exact(self, matrix: np.ndarray, stage: Step) -> tuple[pa.Table, Tally]:
        from shardrank.jobs.retrieve.search import Search, search_source  # torch: seconds

        def advance(tally: Tally) -> None:
            stage.num += tally.num_rows

        self._shown.show(stage)
        documents, top_k = self._documents, self._options.top_k
        if self._options.address is not None:
            from shardrank.jobs.retrieve.tasks import search_on_ray

            return search_on_ray(matrix, documents, top_k, advance)
        search = Search(matrix, top_k, documents.id_type)
        tally = search_source(search, documents, self._num_threads, advance)
        return search.best.table(), tally

    def _built(self, kind: Kind, matrix: np.ndarray) -> Index:
        """The index, tuned on some of the queries against the exact result for them."""
        documents, top_k, found = self._documents, self._options.top_k, self._found
        self._shown.show(Step("training the index"))
        index = Index(kind, documents, top_k, self._num_threads)
        stage = Step("filling the index", documents.num_rows, "vectors")
        self._shown.show(stage)

        def advance(tally: Tally) -> None:
            stage.num = tally.num_rows

        index.fill(advance)
        sample = matrix[:: -(-len(matrix) // _NUM_SAMPLED)]
        whole = Searching("searching exactly", documents.num_rows, "vectors")
        exact, found.vectors = self._exact(sample, whole)
        self._shown.show(Step("tuning the index"))
        index.tune(sample, exact, top_k, self._options.recall)
        found.index, found.effort = kind, index.effort
        found.recall = recall(index.search(sample, top_k), exact)
        return index

    def _check_new(self, ids: pa.Array) -> None:
        for id_ in ids.to_pylist():
            if id_ in self._seen:
                raise JobError(f"--queries: {id_!r} has two vectors: an id must have one")
            self._seen.add(id_)

    def _check_once(self, best: pa.Table) -> None:
        counts = best.group_by(["query", "id"]).aggregate([([], "count_all")])
        again = counts.filter(pc.greater(counts["count_all"], 1))
        if again.num_rows:
            raise JobError(
                f"--embeddings: {again['id'][0].as_py()!r} has two vectors: an id must have one"
            )


def _joined(parts: list[tuple[pa.Array, np.ndarray]]) -> tuple[pa.Array, np.ndarray]:
    ids, matrices = zip(*parts, strict=True)
    return pa.concat_arrays(ids), np.concatenate(matrices)
