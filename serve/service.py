"""One request's way: sides parsed, media fetched, texts cut, scored by the queue of all callers.

Knows the superset of requests and the engine; knows no routes and no dialect's answer.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardrank.actors.config import PIXELS_PER_TOKEN, QueryOptions
from shardrank.actors.data import CandidateSet, Content, PairScore
from shardrank.actors.errors import RerankError
from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.actors.prompt import NUM_CLOSING_TOKENS
from shardrank.actors.reranker import Reranker
from shardrank.serve.cutting import TextCutter
from shardrank.serve.dialects.contents import Parsed, parse_side
from shardrank.serve.dialects.requests import Document, Options, RerankRequest, ScoreRequest, Side
from shardrank.serve.errors import BadRequest, DeadlineExceeded, InvalidRequest, ModelNotFound
from shardrank.serve.fetching import MediaFetcher, within_pixels
from shardrank.serve.gate.access import usage
from shardrank.serve.metrics import Metrics
from shardrank.serve.playground import guide_of
from shardrank.serve.queue.batching import BatchQueue
from shardrank.serve.queue.work import ParsedSide, Sides, Work, in_order
from shardrank.serve.settings import Limits, ServeSettings

_MAX_WARNINGS = 20
_MERGED_TOKENS = 4
"""By so many a prompt may differ from the sum of its parts, where a text meets the template."""
_ANY_DOCUMENT = Content(texts=("a",))  # one token


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

    @property
    def num_tokens(self) -> int:
        return sum(pair.num_tokens for pair in self.pairs)

    @property
    def num_visual_tokens(self) -> int:
        return sum(pair.num_visual_tokens for pair in self.pairs)


class RerankService:
    """Serves requests with one reranker. `start` and `stop` belong to the event loop."""

    def __init__(
        self, reranker: Reranker, queue: BatchQueue, settings: ServeSettings, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.queue = queue
        self._metrics = metrics
        self._scorer = reranker.scorer
        self._preprocessor = reranker.preprocessor
        self._options = reranker.config.options
        self.device_type = reranker.scorer.device.type
        config, limits = settings.reranker, settings.limits
        checkpoint = resolve_checkpoint(config.model, config.revision, weights=False)
        self.guide = guide_of(checkpoint)
        self._cutter = TextCutter(checkpoint)
        self._fetcher = MediaFetcher(settings.web, settings.num_fetching, limits.max_media_bytes)

    @property
    def max_tokens(self) -> int:
        """Of a whole pair."""
        return self._max_tokens(self._options)

    async def start(self) -> None:
        await self.queue.start()

    async def stop(self, drain_s: float) -> None:
        await self.queue.stop(drain_s)
        self._fetcher.close()

    async def rerank(self, request: RerankRequest) -> Scored:
        """Raises ApiError."""
        self._check_model(request.model)
        return await self._score(await asyncio.to_thread(self._rerank_work, request), request)

    async def score(self, request: ScoreRequest) -> Scored:
        """As vLLM's /score: one to one, one to many, or as many to as many. Raises ApiError."""
        self._check_model(request.model)
        return await self._score(await asyncio.to_thread(self._score_work, request), request)

    def _rerank_work(self, request: RerankRequest) -> Work:
        documents, name = request.sides, request.documents_field
        if not documents:
            raise BadRequest(f"{name} must not be empty", param=name, code="empty")
        return Work(
            queries=[_parsed(request.query, "query")],
            documents=self._parse_all(documents, name, self._rank_fields(request)),
            query_of=[0] * len(documents),
            document_name=f"{name}[{{}}]",
            instruction=request.instruction or request.instruct,
        )

    def _rank_fields(self, request: RerankRequest) -> list[str]:
        """Each once: all of them are looked for in every document."""
        names = list(dict.fromkeys(request.rank_fields or ()))
        limit = self.settings.limits.max_rank_fields
        if len(names) > limit:
            raise InvalidRequest(
                f"rank_fields must be at most {limit}, got {len(names)}", param="rank_fields"
            )
        return names

    def _score_work(self, request: ScoreRequest) -> Work:
        left, right = request.fields
        queries, documents = (_listed(getattr(request, name)) for name in (left, right))
        for name, sides in ((left, queries), (right, documents)):
            if not sides:
                raise BadRequest(f"{name} must not be empty", param=name, code="empty")
        if len(queries) not in (1, len(documents)):
            counts = f"got {len(queries)} and {len(documents)}"
            raise InvalidRequest(f"{left} must be one, or as many as {right}; {counts}", param=left)
        return Work(
            queries=self._parse_all(queries, left, None),
            documents=self._parse_all(documents, right, None),
            query_of=list(range(len(queries))) if len(queries) > 1 else [0] * len(documents),
            document_name=f"{right}[{{}}]",
            instruction=request.instruction or request.instruct,
        )

    def _check_model(self, name: str | None) -> None:
        settings = self.settings
        if settings.is_strict_model and name is not None and name not in settings.names:
            raise ModelNotFound.of(name, settings.model_name)

    def _parse_all(
        self, sides: Sequence[Document], name: str, rank_fields: Sequence[str] | None
    ) -> list[ParsedSide]:
        limit = self.settings.limits.max_documents
        if len(sides) > limit:
            raise InvalidRequest(
                f"{name} must be at most {limit}, got {len(sides)}",
                param=name,
                code="too_many_documents",
            )
        return [_parsed(side, f"{name}[{i}]", rank_fields) for i, side in enumerate(sides)]

    async def _score(self, work: Work, request: Options) -> Scored:
        started = time.monotonic()
        options = self._query_options(request)
        _check_texts(work, self.settings.limits)
        usage().num_documents = len(work.documents)
        queries, documents = work.contents()
        _check_media([*queries, *documents], self.settings.limits)
        # Before anything is fetched or cut: texts will not be longer than this.
        longest = _least(options.max_length, request.max_tokens_per_doc)
        expected = replace(options, max_length=longest)
        self.queue.check_room(work.sets(queries, documents, expected)[0])
        queries, documents = await self._fetched(queries, documents)
        if len(queries) == 1 and isinstance(queries[0], RerankError):
            raise BadRequest.of(queries[0], "query")
        (queries, documents), are_cut = await asyncio.to_thread(
            self._cut, queries, documents, work, request, options
        )
        sets, members = work.sets(queries, documents, options)
        timeout_s = self.settings.limits.timeout_s
        left_s = timeout_s + started - time.monotonic()
        try:
            found = await self.queue.score(sets, timeout_s=max(0.0, left_s))
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"not scored within {timeout_s:g} s") from error
        pairs = in_order(found, members)
        pairs = [
            replace(pair, is_truncated=pair.is_truncated or is_cut)
            for pair, is_cut in zip(pairs, are_cut, strict=True)
        ]
        self._count(pairs)
        spent = usage()
        spent.num_tokens = sum(pair.num_tokens for pair in pairs)
        spent.num_truncated = sum(pair.is_truncated for pair in pairs)
        await self._check(pairs, queries, work.document_name, request, options)
        contents = [side for side in (*queries, *documents) if isinstance(side, Content)]
        texts = [_text(side) for side in work.documents]
        heads = [_text(work.queries[number]) for number in work.query_of]
        return Scored(
            pairs,
            texts,
            sum(len(text or "") for text in (*heads, *texts)),
            await asyncio.to_thread(_warnings, work, request, pairs),
            has_images=any(side.images for side in contents),
            has_videos=any(side.videos for side in contents),
        )

    def _count(self, pairs: Sequence[PairScore]) -> None:
        for pair in pairs:
            if pair.error is not None:
                self._metrics.failed_pair(pair.error.code)
        cache = self._scorer.vision_cache
        self._metrics.cache(cache.num_hits, cache.num_misses)

    def _query_options(self, request: Options) -> QueryOptions:
        media = request.media
        wanted = request.truncate_prompt_tokens
        longest = self._options.max_length
        assert longest is not None
        room = longest * PIXELS_PER_TOKEN  # or a small image could be asked for as a huge one
        try:
            own = QueryOptions(
                max_length=_body_tokens(wanted, longest) if wanted and wanted > 0 else None,
                image_min_pixels=media.min_pixels,
                image_max_pixels=_at_most(media.max_pixels, room),
                video_total_pixels=_at_most(media.total_pixels, room),
                fps=media.fps,
                max_frames=media.max_frames,
            )
            own.over(self._options)
        except ValueError as error:
            raise InvalidRequest(str(error), param="mm_processor_kwargs") from error
        return own

    async def _fetched(self, queries: Sides, documents: Sides) -> tuple[Sides, Sides]:
        """Both with bytes where they name media."""
        limits = self.settings.limits
        fetched = await self._fetcher.fetch([*queries, *documents], limits.timeout_s / 2)
        fetched = await asyncio.to_thread(within_pixels, fetched, limits.max_request_pixels)
        return fetched[: len(queries)], fetched[len(queries) :]

    def _cut(
        self,
        queries: Sides,
        documents: Sides,
        work: Work,
        request: Options,
        options: QueryOptions,
    ) -> tuple[tuple[Sides, Sides], list[bool]]:
        """Texts cut to the request's caps, and which pairs have lost something by it."""
        keeps_the_end = request.keeps_the_end

        def cut(side: Content | RerankError, cap: int | None) -> tuple[Content | RerankError, bool]:
            if cap is None or isinstance(side, RerankError) or not side.texts:
                return side, False
            return self._cutter.cut(side, cap, keeps_the_end)

        heads = [cut(query, request.max_tokens_per_query) for query in queries]
        room = [self._room(query, request, options) for query, _ in heads]
        bodies = [
            cut(document, _least(request.max_tokens_per_doc, room[number]))
            for document, number in zip(documents, work.query_of, strict=True)
        ]
        are_cut = [
            is_cut or heads[number][1]
            for (_, is_cut), number in zip(bodies, work.query_of, strict=True)
        ]
        return ([side for side, _ in heads], [side for side, _ in bodies]), are_cut

    def _room(
        self, query: Content | RerankError, request: Options, options: QueryOptions
    ) -> int | None:
        """Tokens that a document may have beside this query, where its end is to be kept.

        The official rule cuts the end; the start has to be cut before.
        """
        if not request.keeps_the_end or not request.may_truncate or isinstance(query, RerankError):
            return None
        instruction = request.instruction or request.instruct
        alone = CandidateSet(query, (_ANY_DOCUMENT,), instruction, options)
        pair = self._preprocessor.prepare(alone).pairs[0]
        if isinstance(pair, RerankError):
            return None
        return max(0, self._max_tokens(options) + 1 - pair.num_tokens - _MERGED_TOKENS)

    def _max_tokens(self, options: QueryOptions) -> int:
        """Of a whole pair."""
        body = options.max_length or self._options.max_length
        assert body is not None
        return body + NUM_CLOSING_TOKENS

    async def _check(
        self,
        pairs: list[PairScore],
        queries: Sides,
        document_name: str,
        request: Options,
        options: QueryOptions,
    ) -> None:
        """Raises BadRequest on what must fail the whole request."""
        if not request.may_truncate and any(pair.is_truncated for pair in pairs):
            longest = self._max_tokens(options)
            index = next(i for i, pair in enumerate(pairs) if pair.is_truncated)
            place = document_name.format(index)
            raise BadRequest(
                f"{place} with its query is longer than {longest} tokens. "
                "Please reduce the length of the input prompt.",
                param=place,
                code="context_length_exceeded",
            )
        failed = {i: pair.error for i, pair in enumerate(pairs) if pair.error is not None}
        if not failed:
            return
        if len(queries) == 1 and len(failed) == len(pairs):
            error = await asyncio.to_thread(self._query_error, queries[0], options)
            if error is not None:
                raise BadRequest.of(error, "query")
        if request.on_error == "fail":
            index, error = next(iter(failed.items()))
            raise BadRequest.of(error, document_name.format(index))

    def _query_error(
        self, query: Content | RerankError, options: QueryOptions
    ) -> RerankError | None:
        """What is wrong with the query by itself."""
        pair = self._preprocessor.prepare(
            CandidateSet(query, (_ANY_DOCUMENT,), None, options)
        ).pairs[0]
        return pair if isinstance(pair, RerankError) else None


def start_service(
    settings: ServeSettings, metrics: Metrics, reranker: Reranker | None = None
) -> RerankService:
    """Loads the model, where it is not given: seconds to minutes."""
    reranker = reranker or Reranker(settings.engine)
    queue = BatchQueue(
        reranker,
        num_preparing=settings.num_preparing,
        max_queue_s=settings.max_queue_s,
        observer=metrics,
    )
    return RerankService(reranker, queue, settings, metrics)


def _parsed(side: Document, name: str, rank_fields: Sequence[str] | None = None) -> ParsedSide:
    try:
        return parse_side(side, name, rank_fields)
    except RerankError as error:
        return error.with_traceback(None)


def _text(side: ParsedSide) -> str | None:
    return side.text if isinstance(side, Parsed) else None


def _listed(sides: Side) -> list[Side]:
    """vLLM's /score takes one side or a list of them; a list of parts stands in `content`."""
    return sides if isinstance(sides, list) else [sides]


def _least(*caps: int | None) -> int | None:
    given = [cap for cap in caps if cap is not None]
    return min(given) if given else None


def _body_tokens(wanted: int, longest: int) -> int:
    """What the official rule counts of a pair that may have `wanted` tokens: not its last five."""
    return min(max(1, wanted - NUM_CLOSING_TOKENS), longest)


def _at_most(value: int | None, highest: int) -> int | None:
    return None if value is None else min(value, highest)


def _check_texts(work: Work, limits: Limits) -> None:
    """Raises InvalidRequest on more text of queries than is joined to documents."""
    queries = [
        sum(map(len, query.content.texts)) if isinstance(query, Parsed) else 0
        for query in work.queries
    ]
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


def _check_media(sides: Sequence[Content | RerankError], limits: Limits) -> None:
    contents = [side for side in sides if isinstance(side, Content)]
    count = sum(
        len(side.images) + sum(len(video.frames or "1") for video in side.videos)
        for side in contents
    )
    if count > limits.max_media:
        raise InvalidRequest(
            f"a request may have at most {limits.max_media} images, frames and videos, got {count}",
            code="too_many_media",
        )


def _warnings(work: Work, request: Options, pairs: Sequence[PairScore]) -> list[str]:
    """Fields that nobody reads, named; what others read otherwise; that something was truncated."""
    warnings = [
        f"field {name!r} is one side of several parts, with one score: some servers give each part "
        "its own"
        for name in request.sides_of_parts
    ]
    names = list(request.unknown_fields)
    for label, sides in (("query", work.queries), (work.document_name, work.documents)):
        for index, side in enumerate(sides):
            if isinstance(side, Parsed):
                names += [f"{label.format(index)}.{name}" for name in side.ignored]
    warnings += [f"field {name!r} is not known and was ignored" for name in names[:_MAX_WARNINGS]]
    if len(names) > _MAX_WARNINGS:
        warnings.append(f"and {len(names) - _MAX_WARNINGS} more unknown fields")
    if num_truncated := sum(pair.is_truncated for pair in pairs):
        warnings.append(f"{num_truncated} of {len(pairs)} documents with their query were cut")
    return warnings
