"""The demo's retrieval tasks: what a query and its documents are made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from prompts import Side

# task -> (forms of the query, forms of a document); a document takes one form at random
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text-to-image": (("text",), ("image",)),
    "image-to-text": (("image",), ("text",)),
    "image-to-image": (("image",), ("image",)),
    "text-to-text": (("text",), ("text",)),
    "text-to-video": (("text",), ("video",)),
    "text-to-mixed": (("text",), ("text", "image", "video", "image+text")),
    "video-to-text": (("video",), ("text",)),
    "mixed-to-image": (("image+text",), ("image",)),
    "image-to-mixed": (("image",), ("text", "image", "video", "image+text")),
}


class Gallery(Protocol):
    """Where a task gets its pictures from: each call gives numbers in the visual bank."""

    def image(self, thing: int, *, is_query: bool) -> int: ...

    def video(self, thing: int, *, is_query: bool) -> tuple[int, int]: ...


@dataclass(slots=True)
class Drawer:
    """Draws sides and candidate lists at random."""

    names: Sequence[dict[str, str]]  # of each object, by language
    gallery: Gallery
    rng: np.random.Generator
    languages: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.languages = list(self.names[0])

    def pick(self, values: Sequence[str]) -> str:
        return values[int(self.rng.integers(len(values)))]

    def side(self, thing: int, form: str, *, is_query: bool, language: str) -> Side:
        return Side(
            videos=(self.gallery.video(thing, is_query=is_query),) if form == "video" else (),
            images=(self.gallery.image(thing, is_query=is_query),) if "image" in form else (),
            text=self.names[thing][language] if "text" in form else None,
        )

    def things(self, thing: int, count: int) -> list[int]:
        """`thing` and count - 1 others, in random order."""
        others = [other for other in range(len(self.names)) if other != thing]
        drawn = [thing, *self.rng.choice(others, count - 1, replace=False).tolist()]
        return self.rng.permutation(drawn).tolist()

    def query(self, task: str, thing: int, language: str) -> Side:
        return self.side(thing, self.pick(TASKS[task][0]), is_query=True, language=language)

    def document(self, task: str, thing: int, query_language: str) -> Side:
        """Names are in a language of their own when the query has one too."""
        is_crossing = "text" in TASKS[task][0]
        others: Iterable[str] = (
            x for x in self.languages if not (is_crossing and x == query_language)
        )
        return self.side(
            thing, self.pick(TASKS[task][1]), is_query=False, language=self.pick(list(others))
        )
