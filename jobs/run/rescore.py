"""A sample of a finished job's pairs, scored again one by one and compared with their rows.

In this process, without Ray. What rode together with a pair, on which worker and after which death,
is to make no difference beyond the last bits: this measures how large it is.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import Content, PairScore, parse_or_error
from shardrank.actors.model.checkpoint import (
    adapter_of,
    checkpoint_fingerprint,
    resolve_checkpoint,
)
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.outputs.budget import parse_percent
from shardrank.jobs.outputs.files import read_scores
from shardrank.jobs.outputs.job import as_kept, config_of
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.outputs.verify import open_output
from shardrank.jobs.run.engine import Engine, PreprocessorLike, ScorerLike
from shardrank.jobs.run.progress import Step, display
from shardrank.jobs.units.plan import Unit
from shardrank.jobs.units.reading import DOCUMENT_NAME, QueryRow, Row, expected_ids, read_unit

Pair = tuple[Any, Any]  # query id, document id


@dataclass(frozen=True, slots=True)
class Moved:
    """A pair whose rank would be another with its new score."""

    pair: Pair
    rank: int
    new_rank: int


@dataclass(slots=True)
class Rescored:
    """What scoring again found.

    max_difference: of a score, in [0, 1]. failed: pairs that have a score and could not be scored
    again, with the reason.
    """

    num_pairs: int = 0
    max_difference: float = 0.0
    moved: list[Moved] = field(default_factory=list)
    failed: list[tuple[Pair, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.num_pairs:,} pairs scored again, each alone: the largest difference of a score "
            f"is {self.max_difference:.1e}, {_ranks_moved(self.moved)}"
        ]
        if self.failed:
            (query_id, doc_id), reason = self.failed[0]
            lines.append(
                f"{len(self.failed):,} more could not be scored again, the first is query_id "
                f"{query_id!r}, doc_id {doc_id!r}: {reason}"
            )
        return "\n".join(lines)


def _ranks_moved(moved: Sequence[Moved]) -> str:
    if not moved:
        return "no rank moved"
    first = moved[0]
    return (
        f"{len(moved):,} {'rank' if len(moved) == 1 else 'ranks'} moved (query_id "
        f"{first.pair[0]!r}, doc_id {first.pair[1]!r}: from {first.rank} to {first.new_rank})"
    )


def parse_share(text: str) -> float:
    """`1%` as 0.01. Raises UsageError."""
    share = parse_percent(text)
    if not share:
        raise UsageError(f"--rescore must be a share of the pairs such as 1%, got {text!r}")
    return share


def rescored(output: str, share: float, engine: Engine, model: str | None = None) -> Rescored:
    """Score again a share (0 to 1) of each unit's scored pairs, at least one, the same ones always.

    model: where the checkpoint is now. Raises UsageError if the model or the input is no longer
    what the job had, and VerificationError if the output is not complete.
    """
    kept, manifest, plan = open_output(output)
    if plan.input.form == "texts":
        raise UsageError(f"--rescore: {output} holds vectors, which have no scores")
    name, revision = manifest.model["name"], manifest.model["revision"]
    found_at, revision = (name, revision) if model is None else (model, None)
    adapter = manifest.model.get("adapter")
    config = config_of(manifest.job, found_at, revision, adapter, manifest.dtype)
    _check_model(config, manifest)
    preprocessor, scorer = engine.preprocessor(config), engine.scorer(config)
    found, step = Rescored(), Step("scored again", len(plan.units), "units")
    columns = ["query_id", "doc_id", "logit", "score", "rank"]
    with display() as shown:
        shown.show(step)
        for unit in plan.units:
            rows = read_scores(kept.file(unit), columns)
            _rescore_unit(plan.input, unit, rows, share, preprocessor, scorer, found)
            step.num += 1
    return found


def _check_model(config: RerankerConfig, manifest: Manifest) -> None:
    try:
        checkpoint = resolve_checkpoint(config, weights=False)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error
    if as_kept(checkpoint_fingerprint(checkpoint, adapter_of(config))) != manifest.job["model"]:
        raise UsageError(f"--model: {config.model} is not the model that the job had")


def _rescore_unit(
    job_input: JobInput,
    unit: Unit,
    rows: pa.Table,
    share: float,
    preprocessor: PreprocessorLike,
    scorer: ScorerLike,
    found: Rescored,
) -> None:
    sets = list(_scored_rows(job_input, unit, rows))
    sample = _sample(sets, share)
    for query in read_unit(job_input, unit) if sample else ():
        scored = sets[query.index]
        wanted = sample.get(query.index, set())
        for doc_id, score in _scored_alone(query, wanted, preprocessor, scorer):
            pair = query.query_id, doc_id
            if score.logit is None or score.score is None:
                found.failed.append((pair, str(score.error)))
                continue
            row = scored[doc_id]
            found.num_pairs += 1
            found.max_difference = max(found.max_difference, abs(score.score - row["score"]))
            new_rank = _new_rank(row, score.logit, scored.values())
            if new_rank != row["rank"]:
                found.moved.append(Moved(pair, row["rank"], new_rank))


def _scored_rows(job_input: JobInput, unit: Unit, rows: pa.Table) -> Iterator[dict[Any, Row]]:
    """Document id -> its row, of the scored ones of each candidate set: a file's rows stand in the
    order of its unit's sets, of which two may have one query id.
    """
    listed = iter(rows.to_pylist())
    for _, doc_ids in expected_ids(job_input, unit):
        of_set = islice(listed, len(doc_ids))
        yield {row["doc_id"]: row for row in of_set if row["logit"] is not None}


def _sample(sets: Sequence[Mapping[Any, Row]], share: float) -> dict[int, set[Any]]:
    """Set -> document ids, of the pairs whose ids have the smallest hashes: chosen by nobody, and
    the same every time.
    """

    def key(pair: tuple[int, Row]) -> bytes:
        ids = pair[1]["query_id"], pair[1]["doc_id"]
        return blake2b(repr(ids).encode(), digest_size=16).digest()

    pairs = [(index, row) for index, rows in enumerate(sets) for row in rows.values()]
    sample: dict[int, set[Any]] = {}
    for index, row in sorted(pairs, key=key)[: math.ceil(share * len(pairs))]:
        sample.setdefault(index, set()).add(row["doc_id"])
    return sample


def _scored_alone(
    query: QueryRow, wanted: Collection[Any], preprocessor: PreprocessorLike, scorer: ScorerLike
) -> Iterator[tuple[Any, PairScore]]:
    """(document id, its score) of a query's wanted documents, each alone in its forward."""
    if not wanted:
        return
    content = parse_or_error(Content.parse_query, query.query, "query")
    opened = preprocessor.open_query(content, query.instruction, query.options, nullcontext)
    for candidate in query.candidates:
        if candidate.doc_id in wanted and candidate.error is None:
            document = parse_or_error(Content.parse, candidate.document, DOCUMENT_NAME)
            pair = opened, preprocessor.open_document(document, DOCUMENT_NAME)
            ((score,),) = scorer.score([preprocessor.prepare_pairs([pair])], lambda _: None)
            assert isinstance(score, PairScore)
            yield candidate.doc_id, score


def _new_rank(row: Row, logit: float, of_query: Iterable[Row]) -> int:
    """The pair's rank with another logit; pairs that tie with it stay on their side of it."""
    logit = float(np.float32(logit))  # as the rows have theirs
    before = (
        other["logit"] > logit or (other["logit"] == logit and other["rank"] < row["rank"])
        for other in of_query
        if other is not row
    )
    return 1 + sum(before)
