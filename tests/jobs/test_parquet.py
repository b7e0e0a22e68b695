from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardrank.jobs.errors import UnreadableInput
from shardrank.jobs.inputs import parquet
from shardrank.jobs.inputs.parquet import fetch_rows, read_footer, read_range, to_rows
from shardrank.jobs.storage import Location

LONG = "a query of half a megabyte " * 20_000
DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def written(path: Path, table: pa.Table, **options: Any) -> Location:
    pq.write_table(table, path, **options)
    return Location.parse(str(path))


def with_allocations(values: Iterable[Any]) -> tuple[list[Any], int]:
    """The values, and what Arrow has allocated for them at most when one comes."""
    before, most, found = pa.total_allocated_bytes(), 0, []
    for value in values:
        most = max(most, pa.total_allocated_bytes() - before)
        found.append(value)
    return found, most


# A dictionary does not expand


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_one_long_query_in_every_row_is_in_memory_once(tmp_path: Path, kind: pa.DataType) -> None:
    value = LONG.encode() if kind == pa.binary() else LONG
    table = pa.table({"query": pa.array([value] * 400, kind), "doc_id": np.arange(400)})
    file = written(tmp_path / "a.parquet", table)
    assert file.info().size < 200_000
    del table
    fetched, most = with_allocations(fetch_rows(file, np.arange(400), ["query", "doc_id"]))
    assert len(value) < most < 10 * len(value)
    rows = [row for _, row in fetched]
    assert [row["doc_id"] for row in rows] == list(range(400))
    assert {id(row["query"]) for row in rows} == {id(rows[0]["query"])}
    assert rows[0]["query"] == value


def test_a_long_text_in_every_candidate_is_in_memory_once(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("doc_id", pa.int64()), ("text", DICTIONARY)]))
    candidates = [{"doc_id": i, "text": LONG} for i in range(100)]
    file = written(tmp_path / "a.parquet", pa.table({"c": pa.array([candidates] * 4, kind)}))
    tables, most = with_allocations(read_range(file, 0, 4, ["c"]))
    assert len(LONG) < most < 10 * len(LONG)
    rows = [row for table in tables for row in to_rows(table)]
    assert rows == [{"c": candidates}] * 4
    assert len({id(each["text"]) for row in rows for each in row["c"]}) == 1


def test_values_that_differ_in_little_come_in_small_batches(tmp_path: Path) -> None:
    options = {"use_dictionary": False, "column_encoding": {"query": "DELTA_BYTE_ARRAY"}}
    table = pa.table({"query": [LONG] * 600})
    file = written(tmp_path / "a.parquet", table, **options)
    assert file.info().size < len(LONG)
    batches = [batch.nbytes for batch in read_range(file, 0, 600, ["query"])]
    assert max(batches) < 130 << 20 < sum(batches)
    ((position, row),) = fetch_rows(file, np.array([599]), ["query"])
    assert (position, row) == (599, {"query": LONG})


VALUES = st.none() | st.sampled_from(["a", "b", "", "é" * 9])
CONTENT = st.none() | st.fixed_dictionaries({"text": VALUES, "bytes": st.none() | st.binary()})
LISTS = st.lists(st.none() | st.lists(CONTENT, max_size=4), max_size=6)


@given(LISTS, st.booleans(), st.integers(0, 6))
def test_rows_are_those_of_to_pylist(rows: list[Any], is_large: bool, start: int) -> None:
    content = pa.struct([("text", DICTIONARY), ("bytes", pa.binary())])
    kind = pa.large_list(content) if is_large else pa.list_(content)
    table = pa.table({"c": pa.chunked_array([pa.array(rows, kind), pa.array(rows, kind)])})
    table = table.slice(start)
    assert to_rows(table) == table.to_pylist()


def test_row_groups_with_and_without_a_dictionary_are_read_alike(tmp_path: Path) -> None:
    texts = ["x" * 200] * 300 + [f"{i} " * 2_000 for i in range(600)]  # the dictionary overflows
    file = written(tmp_path / "a.parquet", pa.table({"text": texts}), row_group_size=450)
    rows = [row for table in read_range(file, 0, 900, ["text"]) for row in to_rows(table)]
    assert [row["text"] for row in rows] == texts
    wanted = np.array([0, 299, 300, 449, 450, 899])
    assert [row["text"] for _, row in fetch_rows(file, wanted, ["text"])] == [
        texts[position] for position in wanted
    ]


def test_a_column_that_a_file_lacks_is_no_part_of_its_rows(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", pa.table({"a": [1, 2], "s": [{"x": 1}, {"x": 2}]}))
    assert list(fetch_rows(file, np.array([1]), ["a", "b", "s.y"])) == [(1, {"a": 2})]
    assert list(fetch_rows(file, np.array([0, 1]), ["b"])) == [(0, {}), (1, {})]
    (table,) = read_range(file, 0, 2, ["b", "a", "s.x"])
    assert to_rows(table) == [{"a": 1, "s": {"x": 1}}, {"a": 2, "s": {"x": 2}}]


# Encryption


class KeyService(pe.KmsClient):
    """Keys that are kept as they are."""

    def __init__(self, _: Any) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return key.hex().encode()

    def unwrap_key(self, wrapped: bytes, _: str) -> bytes:
        return bytes.fromhex(wrapped.decode())


ENCRYPTED = {
    "footer": {"column_keys": {"k": ["doc"]}, "plaintext_footer": False},
    "column": {"column_keys": {"k": ["doc"]}, "plaintext_footer": True},
    "uniform": {"uniform_encryption": True, "plaintext_footer": False},
    "uniform with a plain footer": {"uniform_encryption": True, "plaintext_footer": True},
}


@pytest.mark.parametrize("name", ENCRYPTED)
def test_an_encrypted_file_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    """pyarrow 26 ends the process when it is asked for the metadata of an encrypted column."""
    table = pa.table({"query_id": ["a"] * 10, "doc": ["d"] * 10})
    config = pe.EncryptionConfiguration(footer_key="f", **ENCRYPTED[name])
    properties = pe.CryptoFactory(KeyService).file_encryption_properties(
        pe.KmsConnectionConfig(), config
    )
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(UnreadableInput, match=r"a\.parquet cannot be .*encrypted.*decrypt it"):
        read_footer(Location.parse(str(path)))


def test_a_footer_larger_than_the_last_bytes_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_TAIL_BYTES", 64)
    file = written(tmp_path / "a.parquet", pa.table({"a": [1, 2, 3]}), row_group_size=1)
    assert read_footer(file).num_rows == 3


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 8 + b"PAR1", b"x" * 99])
def test_what_is_no_parquet_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(UnreadableInput, match="a.parquet cannot be read as Parquet"):
        read_footer(Location.parse(str(path)))
