from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardrank.jobs.inputs.digests import TableDigest, content_digest
from shardrank.jobs.inputs.discovery import data_files
from shardrank.jobs.storage import Location

LONG = "a query of half a megabyte " * 20_000


def digest(path: Path, table: pa.Table, columns: list[str], **options: Any) -> str:
    pq.write_table(table, path, **options)
    (file,) = data_files(Location.parse(str(path)))
    return content_digest(file, columns, table.num_rows)


def test_a_digest_is_of_the_values_whatever_keeps_them(tmp_path: Path) -> None:
    long = LONG[:1_000]
    content = {"query": [long, "a", None, long] * 50, "doc": [["x"], [], None, ["y", "x"]] * 50}
    kinds = [(pa.string(), pa.list_), (pa.large_string(), pa.large_list)]
    kinds += [(pa.string_view(), pa.list_view), (pa.dictionary(pa.int8(), pa.string()), pa.list_)]
    found = {
        digest(
            tmp_path / "a.parquet",
            pa.table(
                {
                    "query": pa.array(content["query"], text),
                    "doc": pa.array(content["doc"], list_of(pa.string())),
                }
            ),
            ["doc", "query"],
            use_dictionary=use_dictionary,
            row_group_size=row_group_size,
        )
        for text, list_of in kinds
        for use_dictionary in (True, False)
        for row_group_size in (7, 200)
        if (text, use_dictionary) != (pa.dictionary(pa.int8(), pa.string()), False)
    }
    assert len(found) == 1


@pytest.mark.parametrize("columns", [["query"], ["query", "instruction"]])
def test_a_column_that_the_file_lacks_is_no_part_of_its_digest(
    tmp_path: Path, columns: list[str]
) -> None:
    table = pa.table({"query": ["a", "b"], "other": [1, 2]})
    assert digest(tmp_path / "a.parquet", table, columns) == digest(
        tmp_path / "b.parquet", table.select(["query"]), ["query"]
    )


def test_a_long_text_in_every_row_is_not_expanded_for_its_digest() -> None:
    table = pa.table({"query": pa.array([LONG] * 400).dictionary_encode()})
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)  # nothing that it gives outlives the digest
    pa.set_memory_pool(pool)
    try:
        TableDigest().add(table)
    finally:
        pa.set_memory_pool(before)
    assert len(LONG) < pool.max_memory() < 100 * len(LONG)
    assert pool.bytes_allocated() == 0


def test_a_column_of_nulls_is_the_same_when_it_comes_to_have_a_type(tmp_path: Path) -> None:
    ids = {"id": ["a", "b", "c"]}
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = [pa.null(), pa.string(), pa.float64(), struct, pa.list_(pa.string())]
    found = {
        digest(tmp_path / "a.parquet", pa.table(ids | {"x": pa.nulls(3, kind)}), ["id", "x"])
        for kind in kinds
    }
    assert len(found) == 1


@pytest.mark.parametrize("value", [[("a", 1)], None])
def test_a_map_has_a_digest(tmp_path: Path, value: Any) -> None:
    column = pa.array([value, [("b", 2)]], pa.map_(pa.string(), pa.int64()))
    other = pa.array([value, [("b", 3)]], column.type)
    first, second = (
        digest(tmp_path / "a.parquet", pa.table({"x": each}), ["x"]) for each in (column, other)
    )
    assert first != second
