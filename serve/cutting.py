"""Texts cut to a number of tokens of their own, from either end, before they join a prompt."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import CandidateSet, Content
from shardrank.actors.errors import RerankError
from shardrank.actors.families.family import NUM_CLOSING_TOKENS
from shardrank.actors.preprocessor import Preprocessor
from shardrank.serve.dialects.requests import Options
from shardrank.serve.dialects.work import Sides, Work

_MERGED_TOKENS = 4
"""A prompt may differ from its parts' sum by so many, where a text meets the template."""
ANY_DOCUMENT = Content(texts=("a",))  # one token


class TextCutter:
    """It cuts with a checkpoint's own tokenizer. Thread-safe."""

    def __init__(self, checkpoint: Path, preprocessor: Preprocessor, max_length: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self._preprocessor = preprocessor
        self._max_length = max_length

    def cut(
        self, queries: Sides, documents: Sides, work: Work, request: Options, options: QueryOptions
    ) -> tuple[Sides, Sides, list[bool]]:
        """Texts cut to the request's caps, and which pairs have lost something by it."""
        heads = [
            self._cut(query, request.max_tokens_per_query, request.keeps_the_end)
            for query in queries
        ]
        room = [self._room(query, request, options) for query, _ in heads]
        bodies = [
            self._cut(
                document, _least(request.max_tokens_per_doc, room[number]), request.keeps_the_end
            )
            for document, number in zip(documents, work.query_of, strict=True)
        ]
        are_cut = [
            is_cut or heads[number][1]
            for (_, is_cut), number in zip(bodies, work.query_of, strict=True)
        ]
        return [side for side, _ in heads], [side for side, _ in bodies], are_cut

    def _cut(
        self, side: Content | RerankError, max_tokens: int | None, keeps_the_end: bool
    ) -> tuple[Content | RerankError, bool]:
        """The side with at most max_tokens of text, and whether something was cut away.

        Of several texts the first ones go first (the last ones, where the end is kept). Media are
        not counted.
        """
        if max_tokens is None or isinstance(side, RerankError):
            return side, False
        left = max_tokens
        kept = []
        for text in side.texts[::-1] if keeps_the_end else side.texts:
            offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
            if len(offsets) > left:
                text = _piece(text, offsets, left, keeps_the_end)
            left = max(0, left - len(offsets))
            kept.append(text)
        cut = tuple(kept[::-1] if keeps_the_end else kept)
        return replace(side, texts=cut), cut != side.texts

    def _room(
        self, query: Content | RerankError, request: Options, options: QueryOptions
    ) -> int | None:
        """Tokens that a document may have beside this query, where its end is to be kept.

        The official rule cuts the end; the start has to be cut before.
        """
        if not request.keeps_the_end or not request.may_truncate or isinstance(query, RerankError):
            return None
        instruction = request.instruction or request.instruct
        alone = CandidateSet(query, (ANY_DOCUMENT,), instruction, options)
        pair = self._preprocessor.prepare(alone).pairs[0]
        if isinstance(pair, RerankError):
            return None
        longest = (options.max_length or self._max_length) + NUM_CLOSING_TOKENS
        return max(0, longest + 1 - pair.num_tokens - _MERGED_TOKENS)


def _least(*caps: int | None) -> int | None:
    given = [cap for cap in caps if cap is not None]
    return min(given) if given else None


def _piece(text: str, offsets: list[tuple[int, int]], size: int, keeps_the_end: bool) -> str:
    if not size:
        return ""
    return text[offsets[-size][0] :] if keeps_the_end else text[: offsets[size - 1][1]]
