"""Builds demo/data/set: queries, corpus, first-stage run and qrels, as the batch job reads them.

Documents with pictures, and pictures asked for their name, are of the design that training never
saw. There is no first-stage retriever here: each query's 20 candidates are drawn at random and
stand in random order.
"""

import io
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from drawings import DATA, TEST_DESIGN, TRAIN_DESIGNS, Drawings, clip, load_drawings, on_white
from PIL import Image

SEED = 20
NUM_CANDIDATES = 20
# task -> (number of queries, form of the query, forms of the documents)
PLAN = {
    "text-to-image": (66, "text", ("image",)),
    "image-to-text": (48, "image", ("text",)),
    "image-to-image": (48, "other-design", ("image",)),
    "text-to-text": (66, "text", ("text",)),
    "text-to-video": (48, "text", ("video",)),
    "text-to-mixed": (48, "text", ("text", "image", "video", "image+text")),
}

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
VIDEO = pa.struct(
    [
        ("bytes", pa.binary()),
        ("path", pa.string()),
        ("frames", pa.list_(MEDIA)),
        ("fps", pa.float64()),
    ]
)
QUERIES = pa.schema(
    [
        ("query_id", pa.string()),
        ("text", pa.string()),
        ("image", MEDIA),
        ("task", pa.string()),
        ("language", pa.string()),
        ("object", pa.string()),
    ]
)
CORPUS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("image", MEDIA),
        ("video", pa.list_(VIDEO)),
        ("language", pa.string()),
        ("object", pa.string()),
    ]
)
RUN = pa.schema(
    [
        ("query_id", pa.string()),
        ("doc_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float64()),
    ]
)
QRELS = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return out.getvalue()


def media(pixels: np.ndarray) -> dict:
    return {"bytes": png(pixels), "path": None}


@dataclass(slots=True)
class SetBuilder:
    drawings: Drawings
    rng: np.random.Generator
    languages: list[str]
    queries: list[dict] = field(default_factory=list)
    corpus: dict[str, dict] = field(default_factory=dict)
    run: list[dict] = field(default_factory=list)
    qrels: list[dict] = field(default_factory=list)

    def drawing(self, thing: int, designs: tuple[str, ...]) -> np.ndarray:
        """(64, 64, 4) uint8, one of the object's drawings in these designs."""
        rows = self.drawings.rows(designs)
        rows = rows[self.drawings.labels.numpy()[rows] == thing]
        return self.drawings.pixels[int(self.rng.choice(rows))].permute(1, 2, 0).numpy()

    def picture(self, thing: int, designs: tuple[str, ...]) -> dict:
        rgba = self.drawing(thing, designs)
        from_torch = on_white(self.drawings.pixels.new_tensor(rgba).permute(2, 0, 1)[None])[0]
        return media(from_torch.permute(1, 2, 0).byte().numpy())

    def document(self, thing: int, form: str, query_language: str | None) -> str:
        """Adds the document to the corpus, if it is not there, and returns its id."""
        name = self.drawings.objects[thing]
        others = [language for language in self.languages if language != query_language]
        language = str(self.rng.choice(others)) if form == "text" else None
        if form == "image+text":  # one to an object, each in a language of its own
            language = self.languages[thing % len(self.languages)]
        doc_id = "/".join(part for part in (form, language, name) if part)
        if doc_id not in self.corpus:
            frames = clip(self.drawing(thing, (TEST_DESIGN,)), self.rng) if form == "video" else []
            video = {
                "bytes": None,
                "path": None,
                "frames": [media(frame) for frame in frames],
                "fps": 2.0,
            }
            self.corpus[doc_id] = {
                "doc_id": doc_id,
                "text": self.drawings.names[thing][language] if language else None,
                "image": self.picture(thing, (TEST_DESIGN,)) if "image" in form else None,
                "video": [video] if form == "video" else None,
                "language": language,
                "object": name,
            }
        return doc_id

    def add(self, task: str, number: int, thing: int, language: str) -> None:
        _, form, document_forms = PLAN[task]
        query_id = f"{task}/{number:03d}"
        designs = TRAIN_DESIGNS if form == "other-design" else (TEST_DESIGN,)
        self.queries.append(
            {
                "query_id": query_id,
                "text": self.drawings.names[thing][language] if form == "text" else None,
                "image": None if form == "text" else self.picture(thing, designs),
                "task": task,
                "language": language if form == "text" else None,
                "object": self.drawings.objects[thing],
            }
        )
        others = [other for other in range(len(self.drawings.objects)) if other != thing]
        candidates = [thing, *self.rng.choice(others, NUM_CANDIDATES - 1, replace=False).tolist()]
        scores = np.sort(self.rng.random(NUM_CANDIDATES))[::-1]
        for rank, (place, score) in enumerate(
            zip(self.rng.permutation(NUM_CANDIDATES), scores, strict=True), start=1
        ):
            other = candidates[place]
            doc_form = str(self.rng.choice(document_forms))
            doc_id = self.document(other, doc_form, language if form == "text" else None)
            self.run.append(
                {"query_id": query_id, "doc_id": doc_id, "rank": rank, "score": float(score)}
            )
            if other == thing:
                self.qrels.append({"query_id": query_id, "doc_id": doc_id, "relevance": 1})


def write_set() -> None:
    drawings = load_drawings()
    builder = SetBuilder(drawings, np.random.default_rng(SEED), list(drawings.names[0]))
    for task, (num_queries, _, _) in PLAN.items():
        order = builder.rng.permutation(len(drawings.objects))
        for number in range(num_queries):
            language = builder.languages[number % len(builder.languages)]
            builder.add(task, number, int(order[number % len(order)]), language)
    tables = {
        "queries": pa.Table.from_pylist(builder.queries, QUERIES),
        "corpus": pa.Table.from_pylist(list(builder.corpus.values()), CORPUS),
        "run": pa.Table.from_pylist(builder.run, RUN),
        "qrels": pa.Table.from_pylist(builder.qrels, QRELS),
    }
    (DATA / "set").mkdir(exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, DATA / "set" / f"{name}.parquet", compression="zstd")
        print(f"{name}: {table.num_rows} rows")


if __name__ == "__main__":
    write_set()
