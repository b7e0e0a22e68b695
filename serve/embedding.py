"""One request for vectors: its inputs read, media fetched, embedded by the queue of all callers."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import CandidateSet, Content, Embedding
from shardrank.actors.embedder import Embedder
from shardrank.actors.errors import RerankError
from shardrank.serve.console import usage
from shardrank.serve.dialects.contents import Parsed, parse_side
from shardrank.serve.dialects.embeddings import Embedded, Wanted, are_token_ids
from shardrank.serve.dialects.work import check_media, ignored_fields, ignored_warnings, outcome_of
from shardrank.serve.errors import BadRequest, InvalidRequest
from shardrank.serve.metrics import Metrics
from shardrank.serve.queue.batching import BatchQueue
from shardrank.serve.service import Service
from shardrank.serve.settings import ServeSettings


class EmbedService(Service):
    """Serves requests for vectors with one embedder."""

    async def embed(self, wanted: Wanted) -> Embedded:
        """Raises ApiError."""
        started = time.monotonic()
        self._check_model(wanted.model)
        self._check_dimensions(wanted.dimensions)
        inputs = await asyncio.to_thread(self._parsed, wanted)
        usage().num_documents = len(inputs)
        instruction = wanted.instruction or next((each.instruction for each in inputs), None)
        self._check_instruction(instruction, len(inputs))
        length = wanted.max_length and min(wanted.max_length, self._longest)
        asked = CandidateSet(
            Content(),
            tuple(each.content for each in inputs),
            instruction,
            QueryOptions(max_length=length),
            wanted.name,
            role=wanted.role if instruction is None else "query",
        )
        self.queue.check_room([asked])
        _, contents = await self._fetched([], list(asked.documents))
        (found,) = await self._within_time([replace(asked, documents=tuple(contents))], started)
        self._count(found)
        self._check(found, wanted)
        unknown = ignored_warnings([*wanted.unknown, *ignored_fields(wanted.name, inputs)])
        cut = [each.cut(wanted.dimensions) for each in found]
        num_truncated = sum(each.is_truncated for each in found)
        if num_truncated:
            unknown.append(f"{num_truncated} of {len(found)} inputs were cut")
        return Embedded(cut, unknown)

    def _parsed(self, wanted: Wanted) -> list[Parsed]:
        limits, field = self.settings.limits, wanted.name.removesuffix("[{}]")
        if not wanted.inputs:
            raise BadRequest(f"{field} must not be empty", param=field, code="empty")
        if len(wanted.inputs) > limits.max_documents:
            raise InvalidRequest(
                f"{field} must be at most {limits.max_documents}, got {len(wanted.inputs)}",
                param=field,
                code="too_many_documents",
            )
        inputs = []
        for index, value in enumerate(wanted.inputs):
            name = wanted.name.format(index)
            parsed = outcome_of(parse_side, self._spelled(value, name), name)
            inputs.append(Parsed(parsed) if isinstance(parsed, RerankError) else parsed)
        check_media([each.content for each in inputs], limits)
        if len({each.instruction for each in inputs}) > 1:
            raise InvalidRequest(f"{field} must have one instruction for all", param=field)
        return inputs

    def _check_instruction(self, instruction: str | None, num_inputs: int) -> None:
        limit, num_chars = self.settings.limits.max_query_chars, len(instruction or "") * num_inputs
        if num_chars > limit:
            raise InvalidRequest(
                f"the instruction, once for each input, may have at most {limit:,} characters, got "
                f"{num_chars:,}",
                param="instruction",
                code="text_too_large",
            )

    def _spelled(self, value: Any, name: str) -> Any:
        """Token ids, of the model's own tokenizer, as the text that they spell."""
        if not are_token_ids(value):
            return value
        try:
            return self._engine.preprocessor.text_of(value)
        except ValueError as error:
            raise InvalidRequest(f"{name}: {error}", param=name) from error

    def _check_dimensions(self, dimensions: int | None) -> None:
        width = self._engine.scorer.dimensions
        if dimensions is not None and not 0 < dimensions <= width:
            raise InvalidRequest(
                f"dimensions must be 1 to {width}, got {dimensions}", param="dimensions"
            )

    def _check(self, found: Sequence[Embedding], wanted: Wanted) -> None:
        """Raises BadRequest of the first input that has no vector, or was cut and must not be."""
        for index, each in enumerate(found):
            name = wanted.name.format(index)
            if each.error is not None:
                raise BadRequest.of(each.error, name)
            if each.is_truncated and not wanted.truncates:
                raise BadRequest(
                    f"{name} is longer than {self.max_tokens} tokens. "
                    "Please reduce the length of the input.",
                    param=name,
                    code="context_length_exceeded",
                )


def start_embedding(
    settings: ServeSettings, metrics: Metrics, embedder: Embedder | None = None
) -> EmbedService | None:
    """The service of the settings' embedder, None where there is none."""
    config = settings.embedding_engine
    if config is None:
        return None
    embedder = embedder or Embedder(config)
    queue = BatchQueue(
        embedder,
        num_preparing=settings.num_preparing,
        max_queue_s=settings.max_queue_s,
        observer=metrics if settings.engine is None else None,
        run=embedder.scorer.embed,
    )
    return EmbedService(embedder, queue, settings, metrics, settings.embedder_name)
