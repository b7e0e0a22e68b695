"""Measures of a run against qrels, before and after reranking; knows nothing of how it was scored.

The measures are ir-measures', which has trec_eval underneath. A query counts if the run and the
qrels both have it; with `complete` (trec_eval -c) every query of the qrels counts, at 0 where the
run has none. A pair that failed is not in the reranked run: its document counts as not found.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import ir_measures

from shardrank.jobs.errors import UsageError
from shardrank.jobs.evaluate.qrels import Qrels
from shardrank.jobs.inputs.parquet import read_footer, read_range
from shardrank.jobs.outputs.files import whole
from shardrank.jobs.storage import Location, list_files

Run = dict[str, dict[str, float]]
"""query id -> document id -> score, higher is better."""

DEFAULT_MEASURES = ("nDCG@10", "nDCG@5", "Success@1", "RR@10")

_PROVIDERS = ir_measures.providers.FallbackProvider(
    [ir_measures.pytrec_eval, ir_measures.msmarco, ir_measures.judged, ir_measures.accuracy]
)
"""Those that need no other package and no Perl."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the job's scores. `logit` is None where the pair failed."""

    doc_id: str
    score: float | None
    logit: float | None
    first_stage_rank: int | None
    first_stage_score: float | None


_FIELDS = [each.name for each in fields(Candidate)]
_COLUMNS = ["query_id", *_FIELDS, "error_code"]


@dataclass(frozen=True, slots=True)
class Scores:
    """The job's output by query; of the queries not asked for only the counts remain."""

    candidates: dict[str, list[Candidate]]
    num_pairs: int
    errors: Counter[str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Per-query values (measure -> query -> value) of the first stage and of the reranker.

    before: empty where the input had neither rank nor score of a first stage.
    missing_queries: judged queries without a row in the run.
    """

    measures: tuple[str, ...]
    queries: tuple[str, ...]
    missing_queries: tuple[str, ...]
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]
    before_run: Run = field(repr=False)
    after_run: Run = field(repr=False)

    def averages(self, queries: Iterable[str] | None = None) -> list[tuple[str, float, float]]:
        """(measure, before, after) over `queries` (default: all); before may be NaN."""
        chosen = tuple(self.queries if queries is None else queries)
        return [
            (name, _mean(self.before.get(name), chosen), _mean(self.after[name], chosen))
            for name in self.measures
        ]

    def members(self, labels: Mapping[str, str]) -> dict[str, list[str]]:
        """label -> its queries, in the order of the labels' names."""
        members: dict[str, list[str]] = {}
        for query in self.queries:
            members.setdefault(labels.get(query, "(none)"), []).append(query)
        return dict(sorted(members.items()))

    def changes(self, measure: str) -> list[tuple[str, float]]:
        """(query, after - before), the greatest gain first; empty without a first stage."""
        before, after = self.before.get(measure), self.after[measure]
        if before is None:
            return []
        changed = ((query, after[query] - before[query]) for query in self.queries)
        return sorted(changed, key=lambda pair: (-pair[1], pair[0]))


def evaluate_run(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    *,
    complete: bool = False,
) -> dict[str, float]:
    """Average of each measure over the queries that count (see the top of this file)."""
    values = evaluate_queries(run, qrels, measures, complete=complete)
    return {name: _mean(by_query, tuple(by_query)) for name, by_query in values.items()}


def evaluate_queries(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    *,
    complete: bool = False,
) -> dict[str, dict[str, float]]:
    """measure -> query -> value. Raises UsageError that names an unknown measure."""
    parsed = {name: parse_measure(name) for name in measures}
    judged = {query: dict(qrels[query]) for query in qrels if complete or query in run}
    if not judged:
        raise UsageError("no query of the run has a judgement in the qrels: are the ids the same?")
    known = {query: dict(run[query]) for query in judged if run.get(query)}
    values: dict[Any, dict[str, float]] = {measure: {} for measure in parsed.values()}
    for metric in _PROVIDERS.iter_calc(list(values), judged, known) if known else ():
        values[metric.measure][metric.query_id] = metric.value
    return {
        name: {query: values[measure].get(query, 0.0) for query in judged}
        for name, measure in parsed.items()
    }


def parse_measure(name: str) -> Any:
    """Raises UsageError that names the measure where ir-measures cannot compute it here."""
    try:
        measure = ir_measures.parse_measure(name)
        supported = _PROVIDERS.supports(measure)
    except (NameError, SyntaxError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise UsageError(f"unknown measure {name!r}: {error}") from error
    if not supported:
        raise UsageError(f"measure {name!r} is not one of trec_eval's, which are computed here")
    if measure.params.get("cutoff", 1) < 1:  # trec_eval crashes the process on it
        raise UsageError(f"measure {name!r}: the cutoff must be at least 1")
    return measure


def load_scores(directory: str, queries: Iterable[str] | None = None) -> Scores:
    """Read the job's `scores/*.parquet`, a batch at a time, keeping rows of `queries` only."""
    keep = None if queries is None else set(queries)
    candidates: dict[str, list[Candidate]] = {}
    errors, num_pairs = Counter[str](), 0
    for row in _score_rows(_score_files(directory)):
        num_pairs += 1
        if row["logit"] is None:
            errors[row["error_code"] or "unknown"] += 1
        query_id, doc_id = row["query_id"], row["doc_id"]
        if None not in (query_id, doc_id) and (keep is None or str(query_id) in keep):
            known = {name: row[name] for name in _FIELDS} | {"doc_id": str(doc_id)}
            candidates.setdefault(str(query_id), []).append(Candidate(**known))
    return Scores(candidates, num_pairs, errors)


def load_run_from_scores(directory: str) -> Run:
    """The reranked run, ready for `evaluate_run`: see `reranked_run`."""
    return reranked_run(load_scores(directory))


def _score_files(directory: str) -> list[Location]:
    place = Location.parse(directory)
    for folder in (place.child("scores"), place):
        files = [file for file, _ in list_files(folder) if file.name.endswith(".parquet")]
        if files:
            return files
    raise UsageError(f"{directory} holds no scores/*.parquet: is it the --output of a job?")


def _score_rows(files: Iterable[Location]) -> Iterator[dict[str, Any]]:
    for file in files:
        with whole(file):
            footer = read_footer(file)
            missing = sorted(set(_COLUMNS) - set(footer.schema.names))
            if missing:
                raise UsageError(f"{file} is not a file of scores: it has no column {missing[0]}")
            for table in read_range(file, 0, footer.num_rows, _COLUMNS):
                yield from table.to_pylist()


def reranked_run(scores: Scores) -> Run:
    """The run by logit (float32: sigmoids of bfloat16 logits tie), equal ones in the first
    stage's order.

    Scores are strictly decreasing positions, because trec_eval breaks ties by document id.
    """
    return {
        query: _by_position(c for c in sorted(found, key=_reranked_key) if c.logit is not None)
        for query, found in scores.candidates.items()
    }


def _reranked_key(candidate: Candidate) -> tuple[float, ...]:
    logit = -math.inf if candidate.logit is None else candidate.logit
    return -logit, *_first_stage_key(candidate)


def first_stage_run(scores: Scores) -> Run | None:
    """The run by first_stage_rank, then first_stage_score; None if a candidate has neither."""
    candidates = (c for found in scores.candidates.values() for c in found)
    if any(c.first_stage_rank is None and c.first_stage_score is None for c in candidates):
        return None
    return {
        query: _by_position(sorted(found, key=_first_stage_key))
        for query, found in scores.candidates.items()
    }


def _first_stage_key(candidate: Candidate) -> tuple[float, float]:
    rank, score = candidate.first_stage_rank, candidate.first_stage_score
    if score is None or math.isnan(score):
        score = -math.inf
    return math.inf if rank is None else rank, -score


def _by_position(candidates: Iterable[Candidate]) -> dict[str, float]:
    """Each document once, at its best place."""
    order = list(dict.fromkeys(candidate.doc_id for candidate in candidates))
    return {doc_id: float(len(order) - position) for position, doc_id in enumerate(order)}


def compare(
    scores: Scores,
    qrels: Qrels,
    measures: Sequence[str] = DEFAULT_MEASURES,
    *,
    complete: bool = False,
) -> Comparison:
    """The same queries, measured in the first stage's order and in the reranker's."""
    after_run = reranked_run(scores)
    before_run = first_stage_run(scores)
    after = evaluate_queries(after_run, qrels, measures, complete=complete)
    before = {}
    if before_run is not None:
        before = evaluate_queries(before_run, qrels, measures, complete=complete)
    return Comparison(
        measures=tuple(measures),
        queries=tuple(next(iter(after.values()))),
        missing_queries=tuple(query for query in qrels if query not in scores.candidates),
        before=before,
        after=after,
        before_run=before_run or {},
        after_run=after_run,
    )


def _mean(values: Mapping[str, float] | None, queries: Sequence[str]) -> float:
    if not values or not queries:
        return math.nan
    return sum(values[query] for query in queries) / len(queries)
