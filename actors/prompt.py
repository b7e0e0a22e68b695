"""The official prompt of one pair, as token ids with its visual placeholders expanded.

The template's own special tokens are placed by id; every stretch of text between two of them is
tokenised whole, because BPE merges over the borders of instruction, query and document
(`?` + `\\n<Document>` gives one `?\\n` token), but for the one place where it never does, so that a
query is tokenised once. Knows nothing about pixels.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer

from shardrank.actors.errors import SpecialTokenInText
from shardrank.actors.prepared import PreparedPair

SYSTEM = (
    "system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
NULL = "NULL"
NUM_CLOSING_TOKENS = 5
"""`<|im_end|> \\n <|im_start|> assistant \\n` survive every truncation, as in the official rule."""

_RUN_CACHE_SIZE = 4_096
_RUN_CACHE_MAX_CHARS = 4_096
_LONG_HEADS = 16
"""Queries over _RUN_CACHE_MAX_CHARS whose tokens are kept."""

_HEAD_END, _DOCUMENT_START = "\n<Document", ">:"
_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Qwen's: `<Document` is a word that ends before `>`, whatever comes before and after, and no
normalisation reaches over that place.
"""


@dataclass(frozen=True, slots=True)
class VisualSpan:
    """The tokens of one image or of one pair of video frames.

    grid is (height, width) in merged patches, so `height * width` tokens. A frame pair has the
    mean time of its two frames, in seconds.
    """

    visual: int
    grid: tuple[int, int]
    time_s: float | None = None

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class Side:
    """Query or document, ready for the prompt: its visuals in order, then its texts."""

    spans: tuple[VisualSpan, ...]
    texts: tuple[str, ...]

    @property
    def is_null(self) -> bool:
        return not self.spans and not self.texts


class _Border:
    """Where what comes before and what comes after may be tokenised apart."""


_BORDER = _Border()
_Part = str | int | VisualSpan | _Border


def read_tokenizer(file: Path) -> Tokenizer:
    """Raises ValueError that names the file, a pointer of Git LFS say."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # it knows no other kind
        raise ValueError(f"{file} cannot be read: {error}") from error


class PromptEncoder:
    """Turns (instruction, query, document) into token ids with a checkpoint's own tokenizer.

    neutralize: added tokens typed in a text, special (`<|im_end|>`) or not (`<think>`), are
    tokenised as plain characters; otherwise they act as tokens, as in the official scorer, and a
    typed visual placeholder raises SpecialTokenInText (there the word NULL is scored instead).
    """

    def __init__(self, tokenizer_file: Path, neutralize: bool) -> None:
        self._tokenizer = read_tokenizer(tokenizer_file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = np.array(
            sorted(token_id for token_id, token in added.items() if token.special), dtype=np.int32
        )
        if neutralize:
            self._read_as_text(added.values())
        self.im_start = self.token_id("<|im_start|>")
        self.im_end = self.token_id("<|im_end|>")
        self.vision_start = self.token_id("<|vision_start|>")
        self.vision_end = self.token_id("<|vision_end|>")
        self.image_pad = self.token_id("<|image_pad|>")
        self.video_pad = self.token_id("<|video_pad|>")
        self._cached_run_ids = lru_cache(maxsize=_RUN_CACHE_SIZE)(self._tokenize_run)
        self._cached_head_ids = lru_cache(maxsize=_LONG_HEADS)(self._tokenize_run)
        self._has_border = _splits_before_document(self._tokenizer) and not any(
            f"{_HEAD_END[-1]}{_DOCUMENT_START[0]}" in token.content for token in added.values()
        )

    def _read_as_text(self, tokens: Iterable[AddedToken]) -> None:
        """The tokenizer can read special tokens as text, no others: so all are made special."""
        self._tokenizer.add_special_tokens(list(tokens))  # under the ids that they have
        self._tokenizer.encode_special_tokens = True

    def token_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(
                f"the checkpoint's tokenizer has no token {token!r}: is it a Qwen3-VL reranker?"
            )
        return token_id

    def encode(
        self, instruction: str, query: Side, document: Side, max_length: int, field: str
    ) -> PreparedPair:
        """One pair as the model reads it, cut by the official rule to at most max_length + 5.

        Raises SpecialTokenInText naming `field`, only when special tokens are not neutralised.
        """
        parts = self._parts(instruction, query, document)
        input_ids, span_index, spans = self._expand(parts, field)
        keep = self._kept(input_ids, max_length)
        if keep is not None:
            input_ids, span_index = input_ids[keep], span_index[keep]
        visual_of_span = np.array([*(span.visual for span in spans), -1], dtype=np.int32)
        return PreparedPair(
            input_ids=input_ids,
            position_ids=mrope_position_ids(span_index, spans),
            visual_index=visual_of_span[span_index],
            is_truncated=keep is not None,
        )

    def _parts(self, instruction: str, query: Side, document: Side) -> list[_Part]:
        return [
            self.im_start,
            SYSTEM,
            self.im_end,
            "\n",
            self.im_start,
            f"user\n<Instruct>: {instruction}<Query>:",
            *self._side_parts(query),
            _HEAD_END,
            _BORDER,
            _DOCUMENT_START,
            *self._side_parts(document),
            self.im_end,
            "\n",
            self.im_start,
            "assistant\n",
        ]

    def _side_parts(self, side: Side) -> list[_Part]:
        if side.is_null:
            return [NULL]
        parts: list[_Part] = []
        for span in side.spans:
            if span.time_s is not None:
                parts.append(f"<{span.time_s:.1f} seconds>")
            parts += [self.vision_start, span, self.vision_end]
        return [*parts, *side.texts]

    def _expand(
        self, parts: Sequence[_Part], field: str
    ) -> tuple[np.ndarray, np.ndarray, list[VisualSpan]]:
        """Ids and span indices of the parts, neighbouring texts tokenised as one string."""
        ids: list[np.ndarray] = []
        span_index: list[np.ndarray] = []
        spans: list[VisualSpan] = []
        text: list[str] = []

        def put(run: np.ndarray, span: int) -> None:
            ids.append(run)
            span_index.append(np.full(len(run), span, dtype=np.int32))

        def flush(is_head: bool = False) -> None:
            joined = "".join(text)
            text.clear()
            if joined:
                put(self._run_ids(joined, field, is_head), -1)

        for part in parts:
            if isinstance(part, str):
                text.append(part)
                continue
            if isinstance(part, _Border):
                if self._has_border:
                    flush(is_head=True)
                continue
            flush()
            if isinstance(part, VisualSpan):
                pad = self.image_pad if part.time_s is None else self.video_pad
                put(np.full(part.num_tokens, pad, dtype=np.int32), len(spans))
                spans.append(part)
            else:
                put(np.array([part], dtype=np.int32), -1)
        flush()
        return np.concatenate(ids), np.concatenate(span_index), spans

    def _run_ids(self, run: str, field: str, is_head: bool = False) -> np.ndarray:
        if len(run) <= _RUN_CACHE_MAX_CHARS:
            ids, has_placeholder = self._cached_run_ids(run)
        elif is_head:
            ids, has_placeholder = self._cached_head_ids(run)
        else:
            ids, has_placeholder = self._tokenize_run(run)
        if has_placeholder:
            raise SpecialTokenInText(
                f"{field}: a text of its prompt has a visual placeholder typed in it; special "
                f"tokens are read as plain text unless special_tokens='official'"
            )
        return ids

    def _tokenize_run(self, run: str) -> tuple[np.ndarray, bool]:
        """The run's ids, and whether a visual placeholder is among them."""
        ids = self._tokenizer.encode(run, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int32), self.image_pad in ids or self.video_pad in ids

    def _kept(self, input_ids: np.ndarray, max_length: int) -> np.ndarray | None:
        """Which tokens stay, or None for all.

        The official rule (truncate_tokens_optimized): of all but the last five tokens, special
        ones always stay, and others from the front until max_length is reached.
        """
        body = input_ids[:-NUM_CLOSING_TOKENS]
        if len(body) <= max_length:
            return None
        is_special = np.isin(body, self.special_ids)
        num_text = max(0, max_length - int(is_special.sum()))
        keep = np.ones(len(input_ids), dtype=bool)
        keep[: len(body)] = is_special | (np.cumsum(~is_special) <= num_text)
        return keep


def _splits_before_document(tokenizer: Tokenizer) -> bool:
    """Whether it is one whose words are known to end between `<Document` and `>`."""
    if tokenizer.pre_tokenizer is None:
        return False
    state = json.loads(tokenizer.pre_tokenizer.__getstate__())
    normalizer = tokenizer.normalizer and json.loads(tokenizer.normalizer.__getstate__())
    first = (state.get("pretokenizers") or [{}])[0]
    is_known = first.get("pattern", {}).get("Regex") in _SPLITS and not first["invert"]
    return is_known and first["behavior"] == "Isolated" and normalizer in (None, {"type": "NFC"})


def mrope_position_ids(span_index: np.ndarray, spans: Sequence[VisualSpan]) -> np.ndarray:
    """Temporal, height and width positions of each token: (3, L) int32.

    Text advances all three; an image or frame pair holds its temporal position while height and
    width run over its grid, and what follows starts max(height, width) later
    (transformers' Qwen3VLModel.get_rope_index).
    """
    if not spans:
        return np.tile(np.arange(len(span_index), dtype=np.int32), (3, 1))
    positions = np.empty((3, len(span_index)), dtype=np.int32)
    starts = np.flatnonzero(np.diff(span_index, prepend=np.int32(-2)))
    ends = np.append(starts[1:], len(span_index))
    following = 0
    for start, end in zip(starts, ends, strict=True):
        index = np.arange(end - start, dtype=np.int32)
        if span_index[start] < 0:
            positions[:, start:end] = following + index
            following += end - start
            continue
        height, width = spans[span_index[start]].grid
        positions[0, start:end] = following
        positions[1, start:end] = following + index // width
        positions[2, start:end] = following + index % width
        following += max(height, width)
    return positions
