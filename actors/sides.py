"""The sides of pairs on their way through the preprocessor: each is read once for all its pairs.

Knows nothing about decoding: the preprocessor brings the function that reads.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import Content
from shardrank.actors.errors import RerankError, Unexpected
from shardrank.actors.media.images import Permit, permit_all
from shardrank.actors.media.pixels import check_tokens
from shardrank.actors.prepared import Visual
from shardrank.actors.prompt import Side, VisualSpan


@dataclass(frozen=True, slots=True)
class ReadSide:
    """A side with its media decoded and resized; a span's `visual` is an index in `visuals`."""

    side: Side
    visuals: tuple[Visual, ...]

    @property
    def num_visual_tokens(self) -> int:
        return sum(span.num_tokens for span in self.side.spans)


ReadContent = Callable[[Content, QueryOptions, str, Permit], ReadSide]
"""Reads a side's content; raises RerankError, whose message names the side by the third argument.
"""

Watch = Callable[[], AbstractContextManager[object]]
"""Entered around every reading of a side: whoever opens one may want to know."""


class OpenSide:
    """A side that is read when it is first needed, once for each distinct set of options.

    field: how messages name it. What went wrong is kept like what was read. Threads that need it
    at the same time wait for the one that reads it.
    """

    def __init__(
        self,
        content: Content | RerankError,
        field: str,
        watch: Watch = nullcontext,
        permit: Permit = permit_all,
    ) -> None:
        self.field = field
        self._permit = permit
        self._content = content
        self._watch = watch
        self._read: dict[QueryOptions, ReadSide | RerankError] = {}
        self._lock = Lock()

    def read(self, options: QueryOptions, read: ReadContent) -> ReadSide:
        """Raises the side's RerankError. options: those of media, without a length."""
        with self._lock:
            if options not in self._read:
                self._read[options] = self._attempt(options, read)
            found = self._read[options]
        if isinstance(found, RerankError):
            raise found.with_traceback(None)  # or it would grow with every pair
        return found

    def _attempt(self, options: QueryOptions, read: ReadContent) -> ReadSide | RerankError:
        if isinstance(self._content, RerankError):
            return self._content
        try:
            with self._watch():
                return read(self._content, options, self.field, self._permit)
        except RerankError as error:
            return error
        except Exception as error:
            return Unexpected.of(error, f"reading the {self.field}")

    @property
    def size_bytes(self) -> int:
        """Pixels held."""
        return sum(
            visual.pixels.nbytes
            for found in self._read.values()
            if isinstance(found, ReadSide)
            for visual in found.visuals
        )


@dataclass(frozen=True, slots=True)
class OpenQuery:
    """A query with what it says for all of its pairs; options that do not fit are their error.

    media_options: the options without those that are no matter of media.
    """

    side: OpenSide
    instruction: str
    options: QueryOptions | RerankError
    media_options: QueryOptions

    @property
    def size_bytes(self) -> int:
        return self.side.size_bytes


class VisualTable:
    """The distinct visuals of one set, by content."""

    def __init__(self) -> None:
        self._visuals: list[Visual] = []
        self._index: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._visuals)

    @property
    def visuals(self) -> tuple[Visual, ...]:
        return tuple(self._visuals)

    def add(self, visual: Visual) -> int:
        index = self._index.setdefault(visual.key, len(self._visuals))
        if index == len(self._visuals):
            self._visuals.append(visual)
        return index

    def add_side(self, read: ReadSide) -> Side:
        """The side, with its spans' visuals by their index in this table."""
        if not read.visuals:
            return read.side
        indices = [self.add(visual) for visual in read.visuals]
        spans = tuple(replace(span, visual=indices[span.visual]) for span in read.side.spans)
        return replace(read.side, spans=spans)

    def forget_after(self, mark: int) -> None:
        for visual in self._visuals[mark:]:
            del self._index[visual.key]
        del self._visuals[mark:]


class SideBuilder:
    """Collects what is decoded of one side, at most max_tokens visual tokens."""

    def __init__(self, max_tokens: int) -> None:
        self._table = VisualTable()
        self._spans: list[VisualSpan] = []
        self._max_tokens = max_tokens
        self._num_tokens = 0

    def show(self, pixels: np.ndarray, grid: tuple[int, int], time_s: float | None = None) -> None:
        visual = self._table.add(Visual.of(pixels))
        self._spans.append(VisualSpan(visual, grid, time_s))
        self._num_tokens += self._spans[-1].num_tokens
        check_tokens(self._num_tokens, self._max_tokens)

    def build(self, texts: tuple[str, ...]) -> ReadSide:
        return ReadSide(Side(tuple(self._spans), texts), self._table.visuals)
