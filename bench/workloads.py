"""The candidate sets that are scored: six kinds, deterministic by seed, sizes by a scale.

Scale 1 has the sizes that the comments say. Media are files; a workload names them by path.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.media import write_frames, write_page

SHORTEST, LONGEST = 10, 4_000
NUM_FRAMES = 16

Content = dict[str, Any]
Sets = list[dict[str, Any]]  # as peers/protocol.py has them


@dataclass(frozen=True, slots=True)
class Workload:
    """places[s][d] is that document's place in the whole workload, which is itself unless this is
    a part of another one."""

    name: str
    sets: Sets
    places: list[list[int]]

    @property
    def num_pairs(self) -> int:
        return sum(len(one["documents"]) for one in self.sets)

    def part(self, num_pairs: int) -> "Workload":
        """At most num_pairs of the pairs, evenly spread, in order; queries keep their documents."""
        if num_pairs >= self.num_pairs:
            return self
        step = self.num_pairs / num_pairs
        kept = {int(index * step) for index in range(num_pairs)}
        sets, places = [], []
        for one, numbers in zip(self.sets, self.places, strict=True):
            chosen = [i for i, number in enumerate(numbers) if number in kept]
            if chosen:
                sets.append(one | {"documents": [one["documents"][i] for i in chosen]})
                places.append([numbers[i] for i in chosen])
        return Workload(self.name, sets, places)

    def head(self, num_sets: int, num_documents: int) -> "Workload":
        """The first documents of the first queries: a small whole."""
        sets = [
            one | {"documents": one["documents"][:num_documents]} for one in self.sets[:num_sets]
        ]
        return Workload(self.name, sets, [row[:num_documents] for row in self.places[:num_sets]])


@cache
def words_of(tokenizer_file: str) -> tuple[str, ...]:
    """Words that are one token each, alone and behind a space, which a pre-tokenizer like Qwen's
    splits at: a text has as many tokens as words.
    """
    tokenizer = Tokenizer.from_file(tokenizer_file)
    letters = (w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha() and w.islower())
    return tuple(
        word
        for word in sorted(letters)
        if all(
            len(tokenizer.encode(form, add_special_tokens=False)) == 1
            for form in (word, f" {word}")
        )
    )


@dataclass(frozen=True, slots=True)
class Drawing:
    """What workloads are drawn with, and of what size."""

    words: tuple[str, ...]
    media: Path
    seed: int = 0
    scale: float = 1.0
    page_tokens: int = 300
    rng: random.Random = field(default_factory=random.Random)

    @classmethod
    def of(cls, checkpoint: Path, media: Path = Path("media"), **sizes: Any) -> "Drawing":
        return cls(words_of(str(checkpoint / "tokenizer.json")), media, **sizes)

    def text(self, shortest: int, longest: int | None = None) -> Content:
        num_tokens = self.rng.randint(shortest, longest or shortest)
        return {"text": " ".join(self.rng.choices(self.words, k=num_tokens))}

    def texts(self, number: int, shortest: int, longest: int) -> list[Content]:
        return [self.text(shortest, longest) for _ in range(self.sized(number))]

    def mixed(self, number: int) -> list[Content]:
        """Texts of which as many are short as long (log-uniform)."""
        ratio = LONGEST / SHORTEST
        lengths = (round(SHORTEST * ratio ** self.rng.random()) for _ in range(self.sized(number)))
        return [self.text(length) for length in lengths]

    def page(self, number: int) -> Content:
        folder = self.media / f"pages-{self.seed}-{self.page_tokens}"
        path = folder / f"{number:04}.{'png' if number % 2 else 'jpg'}"
        return {"image": write_page(path, f"{self.seed}:page:{number}", self.page_tokens)}

    def video(self, number: int) -> Content:
        folder = self.media / f"video-{self.seed}-{number:03}"
        frames = write_frames(folder, f"{self.seed}:video:{number}", NUM_FRAMES)
        return {"video": {"frames": frames, "fps": 2.0}}

    def some(self, content: Callable[[int], Content], number: int, pool: int) -> list[Content]:
        """So many candidates out of a pool that all queries share."""
        num_candidates = self.sized(number)
        numbers = range(max(self.sized(pool), num_candidates))
        return [content(chosen) for chosen in self.rng.sample(numbers, num_candidates)]

    def sized(self, number: int) -> int:
        """At least two, so that there always is something to share and to rank."""
        return max(2, round(number * self.scale))


Side = Callable[[Drawing, int], Any]  # draws the query of that number, or its documents


@dataclass(frozen=True, slots=True)
class Kind:
    num_queries: Callable[[Drawing], int]
    query: Side
    documents: Side


KINDS = {
    # 20 queries x 50 passages of 80 to 120 tokens
    "text": Kind(
        lambda d: d.sized(20), lambda d, _: d.text(8, 20), lambda d, _: d.texts(50, 80, 120)
    ),
    # 2 queries of 600 tokens x 100 short documents
    "long-query": Kind(lambda d: 2, lambda d, _: d.text(600), lambda d, _: d.texts(100, 10, 30)),
    # 2 page images as queries x 100 short documents
    "image-query": Kind(lambda d: 2, lambda d, n: d.page(n), lambda d, _: d.texts(100, 10, 30)),
    # 40 queries x 20 candidates out of 60 pages, so that a page serves about 13 queries
    "pages": Kind(
        lambda d: d.sized(40), lambda d, _: d.text(8, 20), lambda d, _: d.some(d.page, 20, 60)
    ),
    # 8 queries x 16 documents of 10 to 4,000 tokens
    "mixed": Kind(lambda d: d.sized(8), lambda d, _: d.text(8, 20), lambda d, _: d.mixed(16)),
    # 4 queries x 5 candidates out of 8 videos of 16 frames
    "video": Kind(
        lambda d: d.sized(4), lambda d, _: d.text(8, 20), lambda d, _: d.some(d.video, 5, 8)
    ),
}


def build_workload(name: str, drawing: Drawing) -> Workload:
    kind = KINDS[name]
    drawing = replace(drawing, rng=random.Random(f"{drawing.seed}:{name}"))
    sets = [
        {"query": kind.query(drawing, number), "documents": kind.documents(drawing, number)}
        for number in range(kind.num_queries(drawing))
    ]
    places = iter(range(sum(len(one["documents"]) for one in sets)))
    return Workload(name, sets, [[next(places) for _ in one["documents"]] for one in sets])
