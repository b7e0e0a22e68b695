import bz2
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs import lines
from shardrank.jobs.storage import Location

ROWS = [{"_id": f"d{i}", "text": f"document {i}"} for i in range(100)]
PACKED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(path: Path, content: bytes) -> Location:
    path.write_bytes(content)
    return Location.parse(str(path))


def fetched(file: Location, positions: list[int]) -> list[Any]:
    return [row for _, row in lines.fetch_rows(file, np.array(positions), ["_id", "text"])]


@pytest.mark.parametrize("ending", PACKED)
def test_a_compressed_file_is_read_at_the_offsets_of_its_content(
    tmp_path: Path, ending: str
) -> None:
    file = written(tmp_path / f"corpus.jsonl{ending}", PACKED[ending](as_lines(ROWS)))
    positions = [position for position, _, _ in lines.scan_rows(file)]
    assert fetched(file, [positions[70], positions[3]]) == [ROWS[3], ROWS[70]]


def test_a_compressed_file_is_unpacked_once_a_process_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    packed = gzip.compress(as_lines(ROWS))
    file = written(tmp_path / "corpus.jsonl.gz", packed)
    info = file.info()
    assert fetched(file, [0]) == ROWS[:1]
    Path(file.path).write_bytes(b"\0" * len(packed))
    os.utime(file.path, ns=(info.mtime_ns, info.mtime_ns))
    assert fetched(file, [0]) == ROWS[:1]  # of what it held when it was unpacked
    assert list(spool.iterdir()) == []
    os.utime(file.path, ns=(0, 0))
    with pytest.raises(UnreadableInput, match="corpus.jsonl.gz cannot be read"):
        fetched(file, [0])


@pytest.mark.parametrize("ending", PACKED)
def test_the_content_of_a_compressed_file_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(lines, "UNPACKED_BYTES", 1 << 20)
    file = written(tmp_path / f"bomb.jsonl{ending}", PACKED[ending](as_lines(ROWS) * 500))
    assert file.info().size < 1 << 17
    for read in (lambda: lines.scan(file, []), lambda: fetched(file, [0])):
        with pytest.raises(UnreadableInput, match="unpacks to more than 1,048,576 bytes"):
            read()


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + as_lines(ROWS[:2]))
    positions, _, rows = zip(*lines.scan_rows(file), strict=True)
    assert positions[0] == 0
    assert list(rows) == fetched(file, list(positions)) == ROWS[:2]
    assert next(lines.text_lines(file))[1].startswith("{")


def test_a_scan_finds_the_names_of_every_line_within_structs_too(tmp_path: Path) -> None:
    rows = [{"id": 1}, {"id": 2, "content": {"text": "x"}}, {"content": {"image": None}}]
    scan = lines.scan(written(tmp_path / "a.jsonl", as_lines(rows)), ["id", "nowhere"])
    assert scan.schema.names == ["id", "content"]
    assert [field.name for field in scan.schema.field("content").type] == ["text", "image"]
    assert scan.columns.to_pydict() == {"id": [1, 2, None], "position": [0, 10, 46]}
    assert scan.total_bytes == scan.size_bytes([]) == len(as_lines(rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"doc": "a", "doc": "b"}', "byte 0: not a JSON line: 'doc' stands twice"),
        ("a.jsonl", b'{"doc": {"text": 1, "text": 2}}', "'text' stands twice"),
        ("a.jsonl", b'{"_id": "a"}\n{oops\n', r"a\.jsonl, byte 13: not a JSON line"),
        ("a.jsonl.gz", gzip.compress(as_lines(ROWS))[:-20], "gz cannot be read: Truncated"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "' + b"a" * (1 << 20)),
            "line 1: longer than 65,536 bytes",
        ),
    ],
)
def test_what_is_no_row_is_refused_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 1 << 16)
    with pytest.raises(UnreadableInput, match=message):
        lines.scan(written(tmp_path / name, content), [])


@pytest.mark.parametrize("ids", [[1, "1"], [1, {}], [1 << 70], ["\ud800"]])
def test_ids_that_no_type_holds_are_refused_by_their_column(tmp_path: Path, ids: list[Any]) -> None:
    file = written(tmp_path / "a.jsonl", as_lines([{"_id": id_} for id_ in ids]))
    with pytest.raises(UsageError, match=r"a\.jsonl: '_id' has values"):
        lines.scan(file, ["_id"])
