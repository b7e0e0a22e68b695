"""Both stages in one command: embed, retrieve, rerank, each the job that it is by itself.

Every stage has a folder of its own in the output and goes on where it was stopped.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from shardrank.actors.config import EmbeddingOptions, RerankerConfig
from shardrank.actors.families.family import Role
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.budget import MaxErrors
from shardrank.jobs.outputs.files import SUCCESS
from shardrank.jobs.rerank import JobOptions, Summary, rerank
from shardrank.jobs.retrieve.retrieval import Retrieval, RetrievalOptions, retrieve
from shardrank.jobs.storage import Location, read_bytes, write_atomically

VECTORS, QUERY_VECTORS, RUN, RERANKED = "vectors", "query-vectors", "run.parquet", "reranked"
NOTE = "search.json"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What the command says. vectors: where the corpus's are kept, if not in the output."""

    queries: str
    corpus: str
    output: str
    top_k: int = 100
    vectors: str | None = None
    preset: str | None = None
    maps: tuple[str, ...] = ()
    address: str | None = None
    num_actors: int | None = None
    max_errors: MaxErrors = MaxErrors()
    retry_errors: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"--top-k must be above zero, got {self.top_k}")

    def place(self, name: str) -> str:
        """A stage's folder, or file, in the output."""
        return f"{self.output.rstrip('/')}/{name}"


@dataclass(frozen=True, slots=True)
class Searched:
    """What each stage did; found: None where the run was there already."""

    documents: Summary
    queries: Summary
    found: Retrieval | None
    reranked: Summary


def search(options: SearchOptions, embedder: RerankerConfig, reranker: RerankerConfig) -> Searched:
    """Run what is still to do of all stages. Raises UsageError or JobError, as each of them."""
    _check_same(options)
    is_finished = Location.parse(options.place(RERANKED)).child(SUCCESS).exists()
    with nullcontext() if is_finished else _one_ray(options):
        documents = _embedded(options, embedder, "document")
        queries = _embedded(options, embedder, "query")
        note = json.dumps({"top_k": options.top_k}).encode()
        write_atomically(Location.parse(options.place(NOTE)), note)
        is_known = is_finished and documents.was_finished and queries.was_finished
        found = None if is_known else retrieve(_retrieval(options))
        pairs = _reranking(options, reranker.max_pdf_pages)
        job = _job(options, options.place(RERANKED), pairs)
        return Searched(documents, queries, found, rerank(job, reranker))


def _check_same(options: SearchOptions) -> None:
    """Raises UsageError for an output whose run has another number of documents a query."""
    place = Location.parse(options.place(NOTE))
    before = json.loads(read_bytes(place)).get("top_k") if place.exists() else options.top_k
    if before != options.top_k:
        raise UsageError(
            f"--output {options.output} was searched with --top-k {before}, not {options.top_k}: "
            "name another directory (--vectors makes use of the vectors that there are)"
        )


def _one_ray(options: SearchOptions) -> AbstractContextManager[None]:
    """All stages' cluster: each joins the one that its process is in."""
    from shardrank.jobs.cluster import connected  # Ray takes seconds, a finished search needs none

    return connected(options.address)


def _embedded(options: SearchOptions, config: RerankerConfig, role: Role) -> Summary:
    is_query = role == "query"
    place = options.place(QUERY_VECTORS) if is_query else _vectors(options)
    table = options.queries if is_query else options.corpus
    maps = _maps(options, "queries" if is_query else "corpus")
    texts = InputOptions(
        table,
        preset=options.preset,
        maps=maps,
        embeds=role,
        max_pdf_pages=config.max_pdf_pages,
    )
    if not is_query:
        config = replace(config, instruction=None)
    return rerank(_job(options, place, texts), replace(config, embedding=EmbeddingOptions(role)))


def _retrieval(options: SearchOptions) -> RetrievalOptions:
    places = options.place(QUERY_VECTORS), _vectors(options), options.place(RUN)
    return RetrievalOptions(*places, top_k=options.top_k)


def _reranking(options: SearchOptions, max_pdf_pages: int) -> InputOptions:
    """The run of the first stage; its own columns have the job's names, whatever the preset's."""
    return InputOptions(
        run=options.place(RUN),
        queries=options.queries,
        corpus=options.corpus,
        preset=options.preset,
        maps=options.maps,
        max_pdf_pages=max_pdf_pages,
    )


def _vectors(options: SearchOptions) -> str:
    return options.vectors or options.place(VECTORS)


def _maps(options: SearchOptions, table: str) -> tuple[str, ...]:
    return tuple(each for each in options.maps if each.startswith(f"{table}."))


def _job(options: SearchOptions, output: str, texts: InputOptions) -> JobOptions:
    return JobOptions(
        output,
        texts,
        address=options.address,
        num_actors=options.num_actors,
        max_errors=options.max_errors,
        retry_errors=options.retry_errors,
        command=options.command,
    )
