"""The candidate sets that are scored: six kinds, deterministic by seed, sizes by a scale.

Scale 1 has the sizes that the comments say. Media are files; a workload names them by path.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.media import write_frames, write_page
from bench.words import WordSource

SHORTEST, LONGEST = 10, 4_000
NUM_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Workload:
    """sets as the protocol has them. places[s][d] is that document's place in the whole workload,
    which is itself unless this is a part of another one."""

    name: str
    sets: list[dict[str, Any]]
    places: list[list[int]]

    @property
    def num_pairs(self) -> int:
        return sum(len(one["documents"]) for one in self.sets)

    @property
    def has_media(self) -> bool:
        return any(
            set(content) - {"text"}
            for one in self.sets
            for content in (one["query"], *one["documents"])
        )

    def save(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}-{self.num_pairs}.json"
        path.write_text(json.dumps({"name": self.name, "sets": self.sets}), encoding="utf-8")
        return path

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


@dataclass(frozen=True, slots=True)
class Drawing:
    """What workloads are drawn with. count: tokens of a string, by the checkpoint's tokenizer."""

    seed: int
    scale: float
    page_tokens: int
    media: Path
    count: Callable[[str], int]

    def words(self, name: str) -> WordSource:
        return WordSource(f"{self.seed}:{name}", self.count)

    def sized(self, number: int) -> int:
        """At least two, so that there always is something to share and to rank."""
        return max(2, round(number * self.scale))

    def page(self, number: int) -> str:
        folder = self.media / f"pages-{self.seed}-{self.page_tokens}"
        path = folder / f"{number:04}.{'png' if number % 2 else 'jpg'}"
        return write_page(path, f"{self.seed}:page:{number}", self.page_tokens)

    def video(self, number: int) -> list[str]:
        folder = self.media / f"video-{self.seed}-{number:03}"
        return write_frames(folder, f"{self.seed}:video:{number}", NUM_FRAMES)


def build_workload(name: str, drawing: Drawing) -> Workload:
    sets = BUILDERS[name](drawing)
    places: list[list[int]] = []
    for one in sets:
        start = places[-1][-1] + 1 if places else 0
        places.append([*range(start, start + len(one["documents"]))])
    return Workload(name, sets, places)


def _text(drawing: Drawing) -> list[dict[str, Any]]:
    """20 queries x 50 passages of 80 to 120 tokens."""
    words = drawing.words("text")
    return [
        _set(
            {"text": words.text(words.rng.randint(8, 20))},
            [{"text": words.text(words.rng.randint(80, 120))} for _ in range(drawing.sized(50))],
        )
        for _ in range(drawing.sized(20))
    ]


def _long_query(drawing: Drawing) -> list[dict[str, Any]]:
    """2 queries of 600 tokens x 100 short documents."""
    words = drawing.words("long-query")
    return [_set({"text": words.text(600)}, _short_documents(words, drawing)) for _ in range(2)]


def _image_query(drawing: Drawing) -> list[dict[str, Any]]:
    """2 page images as queries x 100 short documents."""
    words = drawing.words("image-query")
    return [
        _set({"image": drawing.page(number)}, _short_documents(words, drawing))
        for number in range(2)
    ]


def _short_documents(words: WordSource, drawing: Drawing) -> list[dict[str, Any]]:
    return [{"text": words.text(words.rng.randint(10, 30))} for _ in range(drawing.sized(100))]


def _pages(drawing: Drawing) -> list[dict[str, Any]]:
    """40 queries x 20 candidates out of 60 pages, so that a page serves about 13 queries."""
    words = drawing.words("pages")
    num_candidates = drawing.sized(20)
    pool = range(max(drawing.sized(60), num_candidates))
    return [
        _set(
            {"text": words.text(words.rng.randint(8, 20))},
            [{"image": drawing.page(page)} for page in words.rng.sample(pool, num_candidates)],
        )
        for _ in range(drawing.sized(40))
    ]


def _mixed(drawing: Drawing) -> list[dict[str, Any]]:
    """8 queries x 16 documents of 10 to 4,000 tokens, as many short as long (log-uniform)."""
    words = drawing.words("mixed")

    def length() -> int:
        return round(SHORTEST * (LONGEST / SHORTEST) ** words.rng.random())

    return [
        _set(
            {"text": words.text(words.rng.randint(8, 20))},
            [{"text": words.text(length())} for _ in range(drawing.sized(16))],
        )
        for _ in range(drawing.sized(8))
    ]


def _video(drawing: Drawing) -> list[dict[str, Any]]:
    """4 queries x 5 candidates out of 8 videos of 16 frames."""
    words = drawing.words("video")
    num_candidates = drawing.sized(5)
    pool = range(max(drawing.sized(8), num_candidates))
    return [
        _set(
            {"text": words.text(words.rng.randint(8, 20))},
            [
                {"video": {"frames": drawing.video(number), "fps": 2.0}}
                for number in words.rng.sample(pool, num_candidates)
            ],
        )
        for _ in range(drawing.sized(4))
    ]


def _set(query: dict[str, Any], documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"query": query, "instruction": None, "documents": list(documents)}


BUILDERS: dict[str, Callable[[Drawing], list[dict[str, Any]]]] = {
    "text": _text,
    "long-query": _long_query,
    "image-query": _image_query,
    "pages": _pages,
    "mixed": _mixed,
    "video": _video,
}
