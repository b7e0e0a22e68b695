"""What one request wants scored, read within the limits, and what it gets. Knows no HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import CandidateSet, Content, PairScore
from shardrank.actors.errors import RerankError
from shardrank.serve.dialects.contents import Parsed, parse_side
from shardrank.serve.dialects.requests import Document, Options
from shardrank.serve.errors import BadRequest, InvalidRequest
from shardrank.serve.settings import Limits

P = ParamSpec("P")
T = TypeVar("T")
Sides = list[Content | RerankError]

_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class Scored:
    """One PairScore a pair and its document's text, and what the answer says beside them.

    num_characters: of the texts, a pair's query counted for each of its documents.
    """

    pairs: list[PairScore]
    texts: list[str | None]
    num_characters: int
    warnings: list[str]
    has_images: bool
    has_videos: bool
    seconds: float
    is_on_gpu: bool

    @property
    def num_tokens(self) -> int:
        return sum(pair.num_tokens for pair in self.pairs)

    @property
    def num_visual_tokens(self) -> int:
        return sum(pair.num_visual_tokens for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class Work:
    """documents[i] for queries[query_of[i]], in the answer's order.

    document_name: what the request calls documents[i], to be formatted with i. instruction: for
    queries and documents that have none of their own.
    """

    queries: list[Parsed]
    documents: list[Parsed]
    query_of: list[int]
    document_name: str
    instruction: str | None

    def sets(
        self, queries: Sides, documents: Sides, options: QueryOptions
    ) -> tuple[list[CandidateSet], list[list[int]]]:
        """Documents with one query and instruction are one set; beside each its members' indices.

        queries, documents: as they are by now (fetched, cut).
        """
        groups: dict[tuple[int, str | None], list[int]] = {}
        for index, number in enumerate(self.query_of):
            groups.setdefault((number, self.instruction_of(index)), []).append(index)
        sets = [
            CandidateSet(
                queries[number],
                tuple(documents[i] for i in members),
                instruction,
                options,
                self.document_name,
                tuple(members),
            )
            for (number, instruction), members in groups.items()
        ]
        return sets, list(groups.values())

    def instruction_of(self, index: int) -> str | None:
        """A document's own, its query's, or the request's."""
        query = self.queries[self.query_of[index]]
        return self.documents[index].instruction or query.instruction or self.instruction

    def warnings(self, request: Options, pairs: Sequence[PairScore]) -> list[str]:
        """Fields that nobody reads, named; what others read otherwise; that something was cut."""
        warnings = [
            f"field {name!r} is one side of several parts, with one score: some servers give each "
            "part its own"
            for name in request.sides_of_parts
        ]
        names = list(request.unknown_fields)
        for label, sides in (("query", self.queries), (self.document_name, self.documents)):
            names += ignored_fields(label, sides)
        warnings += ignored_warnings(names)
        if num_truncated := sum(pair.is_truncated for pair in pairs):
            warnings.append(f"{num_truncated} of {len(pairs)} documents with their query were cut")
        return warnings


def ignored_fields(label: str, sides: Sequence[Parsed]) -> list[str]:
    """The fields of sides that nobody reads, by their places."""
    return [
        f"{label.format(index)}.{name}" for index, side in enumerate(sides) for name in side.ignored
    ]


def ignored_warnings(names: Sequence[str]) -> list[str]:
    told = [f"field {name!r} is not known and was ignored" for name in names[:_MAX_WARNINGS]]
    num_more = len(names) - _MAX_WARNINGS
    return told + ([f"and {num_more} more unknown fields"] if num_more > 0 else [])


def work_of(request: Options, limits: Limits) -> Work:
    """What a request wants: one query for all documents, or one for each. Raises ApiError."""
    left, right = request.side_names
    queries, documents = request.lists
    for name, sides in ((left, queries), (right, documents)):
        if not sides:
            name = name.removesuffix("[{}]")
            raise BadRequest(f"{name} must not be empty", param=name, code="empty")
    if len(queries) not in (1, len(documents)):
        left, right = left.removesuffix("[{}]"), right.removesuffix("[{}]")
        counts = f"got {len(queries)} and {len(documents)}"
        raise InvalidRequest(f"{left} must be one, or as many as {right}; {counts}", param=left)
    work = Work(
        queries=_parsed(queries, left, None, limits),
        documents=_parsed(documents, right, _rank_fields(request, limits), limits),
        query_of=list(range(len(queries))) if len(queries) > 1 else [0] * len(documents),
        document_name=right,
        instruction=request.instruction or request.instruct,
    )
    _check_texts(work, limits)
    check_media([side.content for side in (*work.queries, *work.documents)], limits)
    return work


def _rank_fields(request: Options, limits: Limits) -> list[str]:
    """Each once: all of them are looked for in every document."""
    names = list(dict.fromkeys(getattr(request, "rank_fields", None) or ()))
    limit = limits.max_rank_fields
    if len(names) > limit:
        raise InvalidRequest(
            f"rank_fields must be at most {limit}, got {len(names)}", param="rank_fields"
        )
    return names


def _parsed(
    sides: Sequence[Document], name: str, rank_fields: Sequence[str] | None, limits: Limits
) -> list[Parsed]:
    """What is wrong with one of them is in its place."""
    if len(sides) > limits.max_documents:
        field = name.removesuffix("[{}]")
        raise InvalidRequest(
            f"{field} must be at most {limits.max_documents}, got {len(sides)}",
            param=field,
            code="too_many_documents",
        )
    found = [
        outcome_of(parse_side, side, name.format(index), rank_fields)
        for index, side in enumerate(sides)
    ]
    return [Parsed(each) if isinstance(each, RerankError) else each for each in found]


def outcome_of(call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T | RerankError:
    """What a call gives, or the error that it raises about one side's content."""
    try:
        return call(*args, **more)
    except RerankError as error:
        return error.with_traceback(None)


def _check_texts(work: Work, limits: Limits) -> None:
    """Raises InvalidRequest on more text of queries than is joined to documents."""
    queries = [sum(map(len, query.texts)) for query in work.queries]
    num_chars = sum(
        queries[number] + len(work.instruction_of(index) or "")
        for index, number in enumerate(work.query_of)
    )
    if num_chars > limits.max_query_chars:
        raise InvalidRequest(
            f"the query and its instruction, once for each document, may have at most "
            f"{limits.max_query_chars:,} characters, got {num_chars:,}",
            param="query",
            code="text_too_large",
        )


def check_media(sides: Sides, limits: Limits) -> None:
    """Raises InvalidRequest on more media than a request may have."""
    count = sum(
        len(side.images) + sum(len(video.frames or "1") for video in side.videos)
        for side in sides
        if isinstance(side, Content)
    )
    if count > limits.max_media:
        raise InvalidRequest(
            f"a request may have at most {limits.max_media} images, frames and videos, got {count}",
            code="too_many_media",
        )


def in_order(found: list[list[PairScore]], members: list[list[int]]) -> list[PairScore]:
    """The sets' scores as the answer's."""
    scores: dict[int, PairScore] = {}
    for indices, pairs in zip(members, found, strict=True):
        scores.update(zip(indices, pairs, strict=True))
    return [scores[index] for index in range(len(scores))]
