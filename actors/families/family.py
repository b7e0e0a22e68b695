"""What differs between the models that the engine runs: the words around a text, what is cut from
one that is too long, and where the result is read.

A family is a value of functions and constants; the engine below it knows none by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shardrank.actors.errors import InvalidContent

Task = Literal["rerank", "embed"]
"""A pair to one score, or one query or document to a vector."""
Role = Literal["query", "document"]


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


@dataclass(frozen=True, slots=True)
class Special:
    """A token placed by its id; texts before and after it are tokenised apart."""

    token: str


@dataclass(frozen=True, slots=True)
class Border:
    """Where `<Document` ends and what comes before and after may be tokenised apart."""


Part = str | Special | VisualSpan | Border
IM_START, IM_END = Special("<|im_start|>"), Special("<|im_end|>")
VISION_START, VISION_END = Special("<|vision_start|>"), Special("<|vision_end|>")
IMAGE_PAD, VIDEO_PAD = Special("<|image_pad|>"), Special("<|video_pad|>")
BORDER = Border()
CLOSING: tuple[str | Special, ...] = (IM_END, "\n", IM_START, "assistant\n")
NUM_CLOSING_TOKENS = 5
"""Of `<|im_end|> \\n <|im_start|> assistant \\n`, as the official scorer counts them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's parts, of which the body alone is cut. The three are tokenised apart."""

    body: Sequence[Part]
    head: tuple[str | Special, ...] = ()
    tail: tuple[str | Special, ...] = ()


Cut = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray | None]
"""(body's ids, special ids, max_length, tokens beside the body) to which ids stay; None: all do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of model.

    model_type: config.json's.
    classes: of its `architectures`, those whose weights are read.
    instruction, max_length: the official defaults.
    instructed: the instruction that the prompt has, of the one given (None: none), the default and
        the role.
    prompt: its parts, of that instruction and one side, or of query and document.
    cut: what a prompt over max_length loses. appends: the tokenizer's own closing tokens, if it
        has any, end the body, inside the limit.
    reads_placeholders: a visual placeholder typed where there is no image is a token like any
        other; else it is an error.
    wording: all fixed words, which identify the prompt in a manifest.
    """

    name: str
    task: Task
    model_type: str
    classes: frozenset[str]
    takes_media: bool
    instruction: str
    max_length: int
    instructed: Callable[[str | None, str, Role], str | None]
    prompt: Callable[[str | None, Sequence[Side]], Prompt]
    cut: Cut
    appends: bool
    reads_placeholders: bool = False
    wording: str


def side_parts(side: Side, null: str) -> list[Part]:
    """The parts of one side: videos' frames and images, then texts; `null` where it has none."""
    if side.is_null:
        return [null]
    parts: list[Part] = []
    for span in side.spans:
        if span.time_s is not None:
            parts.append(f"<{span.time_s:.1f} seconds>")
        parts += [VISION_START, span, VISION_END]
    return [*parts, *side.texts]


def text_of(side: Side, null: str) -> str:
    return null if side.is_null else "".join(side.texts)


def cut_text(
    ids: np.ndarray, special_ids: np.ndarray, max_length: int, _: int
) -> np.ndarray | None:
    """The last five tokens stay, and of those before them special ones always, others from the
    front until there are max_length (truncate_tokens_optimized).
    """
    before = ids[:-NUM_CLOSING_TOKENS]
    if len(before) <= max_length:
        return None
    is_special = np.isin(before, special_ids)
    num_text = max(0, max_length - int(is_special.sum()))
    keep = np.ones(len(ids), dtype=bool)
    keep[: len(before)] = is_special | (np.cumsum(~is_special) <= num_text)
    return keep


def cut_end(ids: np.ndarray, _: np.ndarray, max_length: int, beside: int) -> np.ndarray | None:
    """The body's first tokens stay, so many that the whole prompt has max_length, whatever they
    are. Raises InvalidContent where the rest alone is longer.
    """
    room = max_length - beside
    if room < 0:
        raise InvalidContent(f"max_length {max_length} is under the {beside} tokens of the prompt")
    return None if len(ids) <= room else np.arange(len(ids)) < room
