import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from job_cases import candidate, image, plan_of, query_row, text, text_rows, write_sets

from jobs.chunks import CHUNK_BYTES, CHUNK_PAIRS
from jobs.preparing import SLICE_MEDIA_DOCUMENTS, prepare_chunks


class Recorder:
    """A preprocessor whose sets take `document_bytes` a document."""

    def __init__(self, document_bytes: int) -> None:
        self.document_bytes = document_bytes
        self.sets: list[list[Any]] = []

    def open_query(self, query: Any, instruction: Any, options: Any, watch: Any) -> Any:
        return query

    def open_document(self, document: Any, name: str, watch: Any = None) -> Any:
        return document

    def prepare_pairs(self, pairs: Any) -> Any:
        self.sets.append(list(pairs))
        num_pairs = len(self.sets[-1])
        return SimpleNamespace(num_pairs=num_pairs, size_bytes=num_pairs * self.document_bytes)


def chunks_of(path: str, preprocessor: Recorder) -> list[tuple[list[dict[str, Any]], list[Any]]]:
    """(rows, prepared sets) of each chunk, after a check of their numbering."""
    plan = plan_of(path, 1_000_000)
    (unit,) = plan.units
    tables = list(prepare_chunks(plan.input, unit, preprocessor))
    assert [table["chunk"][0].as_py() for table in tables] == list(range(len(tables)))
    assert [table["is_last"][0].as_py() for table in tables] == [False] * (len(tables) - 1) + [True]
    return [
        (
            pa.ipc.open_stream(table["rows"][0].as_buffer()).read_all().to_pylist(),
            pickle.loads(table["prepared"][0].as_buffer()),
        )
        for table in tables
    ]


def test_chunks_stay_small_whatever_a_query_brings(tmp_path: Path) -> None:
    pages = [candidate(f"d{i}", image(b"page")) for i in range(300)]
    path = write_sets(tmp_path / "sets.parquet", [query_row(i, pages) for i in range(2)])
    preprocessor = Recorder(document_bytes=4 << 20)
    chunks = chunks_of(path, preprocessor)
    slice_bytes = SLICE_MEDIA_DOCUMENTS * preprocessor.document_bytes
    for _, prepared in chunks:
        assert sum(each.size_bytes for each in prepared) < CHUNK_BYTES + slice_bytes
    assert max(map(len, preprocessor.sets)) == SLICE_MEDIA_DOCUMENTS
    places = [(row["query_index"], row["doc_index"]) for rows, _ in chunks for row in rows]
    assert places == [(i, j) for i in range(2) for j in range(300)]


def test_text_chunks_are_bounded_by_pairs(tmp_path: Path) -> None:
    path = write_sets(tmp_path / "sets.parquet", text_rows(2, 5_000))
    sizes = [len(rows) for rows, _ in chunks_of(path, Recorder(document_bytes=10))]
    assert sum(sizes) == 10_000
    assert max(sizes) < CHUNK_PAIRS + 512


def test_rows_known_to_be_bad_are_never_prepared(tmp_path: Path) -> None:
    documents = [candidate("a", text("a")), candidate("a", text("b")), candidate(None, text("c"))]
    preprocessor = Recorder(document_bytes=1)
    ((rows, prepared),) = chunks_of(
        write_sets(tmp_path / "sets.parquet", [query_row(1, documents), query_row(2, [])]),
        preprocessor,
    )
    assert [row["error_code"] for row in rows] == [
        None,
        "duplicate_id",
        "null_id",
        "empty_candidates",
    ]
    assert [[document.texts for _, document in each] for each in preprocessor.sets] == [[("a",)]]
    assert [each.num_pairs for each in prepared] == [1]
