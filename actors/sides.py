"""The sides of pairs on their way through the preprocessor: each is read once for all its pairs.

Knows nothing about decoding: the preprocessor brings the function that reads.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import Content
from shardrank.actors.errors import RerankError, Unexpected
from shardrank.actors.families.family import Side
from shardrank.actors.media.images import Permit, permit_all
from shardrank.actors.prepared import Visual, VisualTable


@dataclass(frozen=True, slots=True)
class ReadSide:
    """A side with its media decoded and resized; a span's `visual` is an index in `visuals`."""

    side: Side
    visuals: tuple[Visual, ...]

    @property
    def num_visual_tokens(self) -> int:
        return sum(span.num_tokens for span in self.side.spans)

    def within(self, table: VisualTable) -> Side:
        """The side, with its spans' visuals by their index in the table."""
        indices = [table.add(visual) for visual in self.visuals]
        spans = (replace(span, visual=indices[span.visual]) for span in self.side.spans)
        return replace(self.side, spans=tuple(spans)) if indices else self.side


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
    """A query with what it says for all of its pairs, or a text that is embedded alone; options
    that do not fit are their error.

    media_options: the options without those that are no matter of media.
    """

    side: OpenSide
    instruction: str | None
    options: QueryOptions | RerankError
    media_options: QueryOptions

    @property
    def size_bytes(self) -> int:
        return self.side.size_bytes
