"""One request's way: its work, media fetched, texts cut, scored by the queue of all callers.

Knows the superset of requests and the engine; knows no routes and no dialect's answer.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from shardrank.actors.config import PIXELS_PER_TOKEN, QueryOptions
from shardrank.actors.data import CandidateSet, Content, PairScore
from shardrank.actors.errors import RerankError
from shardrank.actors.families.family import NUM_CLOSING_TOKENS
from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.actors.reranker import Reranker
from shardrank.serve.console import usage
from shardrank.serve.cutting import ANY_DOCUMENT, TextCutter
from shardrank.serve.dialects.requests import Options, RerankRequest, ScoreRequest
from shardrank.serve.dialects.work import Scored, Sides, in_order, work_of
from shardrank.serve.errors import BadRequest, DeadlineExceeded, InvalidRequest, ModelNotFound
from shardrank.serve.fetching import MediaFetcher, within_pixels
from shardrank.serve.metrics import Metrics
from shardrank.serve.playground import guide_of
from shardrank.serve.queue.batching import BatchQueue
from shardrank.serve.settings import ServeSettings


class RerankService:
    """Serves requests with one reranker. `start` and `stop` belong to the event loop."""

    def __init__(
        self, reranker: Reranker, queue: BatchQueue, settings: ServeSettings, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.queue = queue
        self.device_type = reranker.scorer.device.type
        self._metrics = metrics
        self._reranker = reranker
        self._options = reranker.config.options
        assert self._options.max_length is not None
        self._longest = self._options.max_length
        config, limits = settings.reranker, settings.limits
        checkpoint = resolve_checkpoint(config, weights=False)
        self.guide = guide_of(checkpoint)
        self._cutter = TextCutter(checkpoint, reranker.preprocessor, self._longest)
        self._fetcher = MediaFetcher(settings.web, settings.num_fetching, limits.max_media_bytes)

    @property
    def max_tokens(self) -> int:
        """Tokens of a whole pair."""
        return self._longest + NUM_CLOSING_TOKENS

    async def start(self) -> None:
        await self.queue.start()

    async def stop(self, drain_s: float) -> None:
        await self.queue.stop(drain_s)
        self._fetcher.close()

    async def score(self, request: RerankRequest | ScoreRequest) -> Scored:
        """Raises ApiError."""
        started = time.monotonic()
        limits = self.settings.limits
        self._check_model(request.model)
        work = await asyncio.to_thread(work_of, request, limits)
        usage().num_documents = len(work.documents)
        options = self._query_options(request)
        queries, documents = work.contents()
        # Before anything is fetched or cut: texts will not be longer than this.
        caps = filter(None, (options.max_length, request.max_tokens_per_doc))
        expected = replace(options, max_length=min(caps, default=None))
        self.queue.check_room(work.sets(queries, documents, expected)[0])
        queries, documents = await self._fetched(queries, documents)
        if len(queries) == 1 and isinstance(queries[0], RerankError):
            raise BadRequest.of(queries[0], "query")
        are_cut = [False] * len(documents)
        if request.cuts_texts:
            queries, documents, are_cut = await asyncio.to_thread(
                self._cutter.cut, queries, documents, work, request, options
            )
        sets, members = work.sets(queries, documents, options)
        found = await self._within_time(sets, started)
        pairs = [
            replace(pair, is_truncated=True) if is_cut else pair
            for pair, is_cut in zip(in_order(found, members), are_cut, strict=True)
        ]
        self._count(pairs)
        await self._check(pairs, queries, work.document_name, request, options)
        contents = [side for side in (*queries, *documents) if isinstance(side, Content)]
        texts = [side.text for side in work.documents]
        heads = [work.queries[number].text for number in work.query_of]
        return Scored(
            pairs,
            texts,
            sum(len(text or "") for text in (*heads, *texts)),
            await asyncio.to_thread(work.warnings, request, pairs),
            has_images=any(side.images for side in contents),
            has_videos=any(side.videos for side in contents),
            seconds=time.monotonic() - started,
            is_on_gpu=self.device_type == "cuda",
        )

    async def _within_time(
        self, sets: Sequence[CandidateSet], started: float
    ) -> list[list[PairScore]]:
        timeout_s = self.settings.limits.timeout_s
        left_s = timeout_s + started - time.monotonic()
        try:
            return await self.queue.score(sets, timeout_s=max(0.0, left_s))
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"not scored within {timeout_s:g} s") from error

    def _check_model(self, name: str | None) -> None:
        settings = self.settings
        if settings.is_strict_model and name is not None and name not in settings.names:
            raise ModelNotFound.of(name, settings.model_name)

    def _count(self, pairs: Sequence[PairScore]) -> None:
        for pair in pairs:
            if pair.error is not None:
                self._metrics.failed_pair(pair.error.code)
        cache = self._reranker.scorer.vision_cache
        self._metrics.cache(cache.num_hits, cache.num_misses)
        spent = usage()
        spent.num_tokens = sum(pair.num_tokens for pair in pairs)
        spent.num_truncated = sum(pair.is_truncated for pair in pairs)

    def _query_options(self, request: Options) -> QueryOptions:
        media, wanted = request.media, request.truncate_prompt_tokens
        room = self._longest * PIXELS_PER_TOKEN  # or a small image could be asked for as a huge one
        length = None
        if wanted and wanted > 0:  # of a whole pair, of whose end the official rule counts nothing
            length = min(max(1, wanted - NUM_CLOSING_TOKENS), self._longest)
        try:
            own = QueryOptions(
                max_length=length,
                image_min_pixels=media.min_pixels,
                image_max_pixels=media.max_pixels and min(media.max_pixels, room),
                video_total_pixels=media.total_pixels and min(media.total_pixels, room),
                fps=media.fps,
                max_frames=media.max_frames,
            )
            own.over(self._options)
        except ValueError as error:
            raise InvalidRequest(str(error), param="mm_processor_kwargs") from error
        return own

    async def _fetched(self, queries: Sides, documents: Sides) -> tuple[Sides, Sides]:
        """Both with bytes where they name media."""
        sides, limits = [*queries, *documents], self.settings.limits
        if not any(isinstance(side, Content) and side.has_media for side in sides):
            return queries, documents
        sides = await self._fetcher.fetch(sides, limits.timeout_s / 2)
        sides = await asyncio.to_thread(within_pixels, sides, limits.max_request_pixels)
        return sides[: len(queries)], sides[len(queries) :]

    async def _check(
        self,
        pairs: list[PairScore],
        queries: Sides,
        document_name: str,
        request: Options,
        options: QueryOptions,
    ) -> None:
        """Raises BadRequest on what must fail the whole request."""
        truncated = [index for index, pair in enumerate(pairs) if pair.is_truncated]
        if truncated and not request.may_truncate:
            longest = (options.max_length or self._longest) + NUM_CLOSING_TOKENS
            place = document_name.format(truncated[0])
            raise BadRequest(
                f"{place} with its query is longer than {longest} tokens. "
                "Please reduce the length of the input prompt.",
                param=place,
                code="context_length_exceeded",
            )
        failed = {i: pair.error for i, pair in enumerate(pairs) if pair.error is not None}
        if len(queries) == 1 and failed and len(failed) == len(pairs):
            alone = CandidateSet(queries[0], (ANY_DOCUMENT,), None, options)
            prepared = await asyncio.to_thread(self._reranker.preprocessor.prepare, alone)
            if isinstance(prepared.pairs[0], RerankError):  # the query by itself
                raise BadRequest.of(prepared.pairs[0], "query")
        if failed and request.on_error == "fail":
            index, error = next(iter(failed.items()))
            raise BadRequest.of(error, document_name.format(index))


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
