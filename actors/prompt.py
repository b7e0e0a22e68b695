"""The official prompt of one pair or text, as token ids with its visual placeholders expanded.

A family's own special tokens are placed by id; every stretch of text between two of them is
tokenised whole, because BPE merges over the borders of instruction, query and document
(`?` + `\\n<Document>` gives one `?\\n` token), but for the one place where it never does, so that a
query is tokenised once. Knows nothing about pixels.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer

from shardrank.actors.errors import InvalidContent, SpecialTokenInText, TooManyVisualTokens
from shardrank.actors.families.family import (
    IMAGE_PAD,
    VIDEO_PAD,
    Border,
    Family,
    Part,
    Side,
    Special,
    VisualSpan,
)
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER
from shardrank.actors.prepared import PreparedPair

_RUN_CACHE_SIZE = 4_096
_RUN_CACHE_MAX_CHARS = 4_096
_LONG_HEADS = 16
"""Queries over _RUN_CACHE_MAX_CHARS whose tokens are kept."""

_HEAD_END, _DOCUMENT_START = "<Document", ">:"
_NO_IDS = np.empty(0, dtype=np.int32)
_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Qwen's: `<Document` is a word that ends before `>`, whatever comes before and after, and no
normalisation reaches over that place.
"""


def read_tokenizer(file: Path) -> Tokenizer:
    """Raises ValueError that names the file, a pointer of Git LFS say."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # it knows no other kind
        raise ValueError(f"{file} cannot be read: {error}") from error


class PromptEncoder:
    """Turns an instruction and one side, or query and document, into token ids as a family has
    them, with a checkpoint's own tokenizer. Raises ValueError where that has not its tokens.

    neutralize: added tokens typed in a text, special (`<|im_end|>`) or not (`<think>`), are
    tokenised as plain characters; otherwise they act as tokens, as in the official scorer, and a
    typed visual placeholder raises SpecialTokenInText (there the word NULL is scored instead).
    """

    def __init__(
        self, tokenizer_file: Path, neutralize: bool, family: Family = QWEN3_VL_RERANKER
    ) -> None:
        self._family = family
        self._tokenizer = read_tokenizer(tokenizer_file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._appended = self._own_closing(tokenizer_file) if family.appends else _NO_IDS
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = np.array(
            sorted(token_id for token_id, token in added.items() if token.special), dtype=np.int32
        )
        if neutralize:
            self._read_as_text(added.values())
        self._token_ids: dict[str, int] = {}
        self._image_pad = self._token_id(IMAGE_PAD) if family.takes_media else -1
        self._video_pad = self._token_id(VIDEO_PAD) if family.takes_media else -1
        self._cached_run_ids = lru_cache(maxsize=_RUN_CACHE_SIZE)(self._tokenize_run)
        self._cached_head_ids = lru_cache(maxsize=_LONG_HEADS)(self._tokenize_run)
        self._fixed_ids = lru_cache(maxsize=None)(self._tokenize_fixed)
        self._has_border = _splits_before_document(self._tokenizer) and not any(
            f"{_HEAD_END[-1]}{_DOCUMENT_START[0]}" in token.content for token in added.values()
        )

    def _own_closing(self, tokenizer_file: Path) -> np.ndarray:
        """What the tokenizer's post-processor puts behind every text."""
        closing = self._tokenizer.encode("").ids
        alone = self._tokenizer.encode("a", add_special_tokens=False).ids
        if self._tokenizer.encode("a").ids != alone + closing:
            raise ValueError(f"{tokenizer_file} puts tokens before a text: no {self._family.name}")
        return np.array(closing, dtype=np.int32)

    def _read_as_text(self, tokens: Iterable[AddedToken]) -> None:
        """The tokenizer can read special tokens as text, no others: so all are made special."""
        self._tokenizer.add_special_tokens(list(tokens))  # under the ids that they have
        self._tokenizer.encode_special_tokens = True

    def _token_id(self, special: Special) -> int:
        known = self._token_ids.get(special.token)
        if known is not None:
            return known
        token_id = self._tokenizer.token_to_id(special.token)
        if token_id is None:
            raise ValueError(
                f"the checkpoint's tokenizer has no token {special.token!r}: is it a "
                f"{self._family.name}?"
            )
        self._token_ids[special.token] = token_id
        return token_id

    def encode(
        self, instruction: str | None, sides: Sequence[Side], max_length: int, field: str
    ) -> PreparedPair:
        """One side, or query and document, as the model reads them, cut by the family's rule.

        Raises the RerankError of `field`: SpecialTokenInText only when special tokens are not
        neutralised, TooManyVisualTokens where a cut would go through an image.
        """
        prompt = self._family.prompt(instruction, sides)
        head, tail = self._fixed_ids(prompt.head), self._fixed_ids(prompt.tail)
        input_ids, span_index, spans = self._expand(prompt.body, field)
        beside = len(head) + len(self._appended) + len(tail)
        keep = self._family.cut(input_ids, self.special_ids, max_length, beside)
        if keep is not None:
            if (span_index[~keep] >= 0).any():
                raise TooManyVisualTokens(
                    f"{field}: its images and videos do not fit in max_length {max_length}"
                )
            input_ids, span_index = input_ids[keep], span_index[keep]
        input_ids = np.concatenate((head, input_ids, self._appended, tail))
        if not len(input_ids):
            raise InvalidContent(f"{field} has no token")
        before, after = _text(len(head)), _text(len(self._appended) + len(tail))
        span_index = np.concatenate((before, span_index, after))
        visual_of_span = np.array([*(span.visual for span in spans), -1], dtype=np.int32)
        return PreparedPair(
            input_ids=input_ids,
            position_ids=mrope_position_ids(span_index, spans),
            visual_index=visual_of_span[span_index],
            is_truncated=keep is not None,
        )

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that token ids spell, without the tokenizer's own closing. Raises ValueError for
        ids that are no text's: one that no token has, special ones, a part of a character.
        """
        ids, closing = list(ids), self._appended.tolist()
        known = self._tokenizer.get_vocab_size()
        wrong = next((each for each in ids if not 0 <= each < known), None)
        if wrong is not None:
            raise ValueError(f"no token has the id {wrong}")
        if closing and ids[-len(closing) :] == closing:
            ids = ids[: -len(closing)]
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        if self._tokenizer.encode(text, add_special_tokens=False).ids != ids:
            raise ValueError("these token ids are no text of this model's tokenizer")
        return text

    def _tokenize_fixed(self, parts: tuple[str | Special, ...]) -> np.ndarray:
        """The ids of a family's own words."""
        return self._expand(parts, "prompt")[0]

    def _expand(
        self, parts: Sequence[Part], field: str
    ) -> tuple[np.ndarray, np.ndarray, list[VisualSpan]]:
        """Ids and span indices of the parts, neighbouring texts tokenised as one string."""
        ids: list[np.ndarray] = [_NO_IDS]
        span_index: list[np.ndarray] = [_NO_IDS]
        spans: list[VisualSpan] = []
        text: list[str] = []
        takes_placeholders = self._family.reads_placeholders and not any(
            isinstance(part, VisualSpan) for part in parts
        )

        def put(run: np.ndarray, span: int) -> None:
            ids.append(run)
            span_index.append(np.full(len(run), span, dtype=np.int32))

        def flush(is_head: bool = False) -> None:
            joined = "".join(text)
            text.clear()
            if joined:
                put(self._run_ids(joined, field, is_head, takes_placeholders), -1)

        for part in parts:
            if isinstance(part, str):
                text.append(part)
                continue
            if isinstance(part, Border):
                if self._has_border:
                    flush(is_head=True)
                continue
            flush()
            if isinstance(part, VisualSpan):
                pad = self._image_pad if part.time_s is None else self._video_pad
                put(np.full(part.num_tokens, pad, dtype=np.int32), len(spans))
                spans.append(part)
            else:
                put(np.array([self._token_id(part)], dtype=np.int32), -1)
        flush()
        return np.concatenate(ids), np.concatenate(span_index), spans

    def _run_ids(self, run: str, field: str, is_head: bool, takes_placeholders: bool) -> np.ndarray:
        if len(run) <= _RUN_CACHE_MAX_CHARS:
            ids, has_placeholder = self._cached_run_ids(run)
        elif is_head:
            ids, has_placeholder = self._cached_head_ids(run)
        else:
            ids, has_placeholder = self._tokenize_run(run)
        if has_placeholder and not takes_placeholders:
            raise SpecialTokenInText(
                f"{field}: a text of its prompt has a visual placeholder typed in it; special "
                f"tokens are read as plain text unless special_tokens='official'"
            )
        return ids

    def _tokenize_run(self, run: str) -> tuple[np.ndarray, bool]:
        """The run's ids, and whether a visual placeholder is among them."""
        ids = self._tokenizer.encode(run, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int32), self._image_pad in ids or self._video_pad in ids


def _text(num_tokens: int) -> np.ndarray:
    """Span indices of tokens that are no visual's."""
    return np.full(num_tokens, -1, dtype=np.int32)


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
