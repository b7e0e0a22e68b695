"""Delta and Iceberg tables as their own libraries write them."""

import base64
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyroaring
import pytest
from deltalake import write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.discovery import data_files
from shardrank.jobs.storage import Location
from tests.support.job_cases import read_all

FIRST_LOG = "_delta_log/00000000000000000000.json"


def pairs(doc: str) -> pa.Table:
    return pa.table({"query_id": ["q"], "doc_id": ["d"], "query": ["what"], "doc": [doc]})


def documents(place: Path | str) -> list[Any]:
    return [each.document for row in read_all(str(place)) for each in row.candidates]


def refused(place: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        data_files(Location.parse(str(place)))
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite(log: Path, action: str, change: Any) -> None:
    """Change one action of a Delta table's log in place."""
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for each in actions:
        if action in each:
            change(each[action])
    log.write_text("\n".join(map(json.dumps, actions)))


@pytest.fixture
def iceberg(tmp_path: Path) -> Any:
    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", schema=pairs("").schema)
    table.append(pairs("old"))
    table.overwrite(pairs("new"))
    yield table
    catalog.close()


def test_removed_files_of_a_delta_table_are_not_read(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pairs("old"))
    write_deltalake(tmp_path, pairs("new"), mode="overwrite")
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    assert documents(tmp_path) == documents(tmp_path / "*.parquet") == ["new"]


def test_a_delta_table_in_a_bucket_is_read(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    options = {"AWS_ALLOW_HTTP": "true"}
    write_deltalake("s3://bucket/delta", pairs("old"), storage_options=options)
    write_deltalake("s3://bucket/delta", pairs("new"), mode="overwrite", storage_options=options)
    assert documents("s3://bucket/delta") == ["new"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = s3_endpoint.removeprefix("http://")
    assert documents(f"s3://bucket/delta?endpoint_override={host}&scheme=http") == ["new"]


def test_a_partition_of_a_delta_table_is_not_read_for_itself(tmp_path: Path) -> None:
    table = pairs("new").append_column("language", pa.array(["high valyrian"]))
    write_deltalake(tmp_path, table, partition_by=["language"])
    assert documents(tmp_path) == ["new"]
    (partition,) = tmp_path.glob("language=*")
    assert f"is a part of the Delta table {tmp_path}" in refused(partition)


def test_a_column_in_the_names_of_folders_is_said(tmp_path: Path) -> None:
    table = pairs("new").append_column("instruction", pa.array(["find"]))
    write_deltalake(tmp_path, table, partition_by=["instruction"])
    with pytest.raises(UsageError, match="column 'instruction' stands in the name of a folder"):
        documents(tmp_path)


def test_deletion_vectors_are_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pairs("x"), configuration={"delta.enableDeletionVectors": "true"})
    content = struct.pack("<I", 1681511377) + pyroaring.BitMap64([0]).serialize()
    z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    ours = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    text = base64.b85encode(content + b"\0" * (-len(content) % 4)).decode()
    vector = {
        "storageType": "i",
        "pathOrInlineDv": text.translate(str.maketrans(ours, z85)),
        "sizeInBytes": len(content),
        "cardinality": 1,
    }
    rewrite(tmp_path / FIRST_LOG, "add", lambda add: add.update(deletionVector=vector))
    assert "has deletion vectors" in refused(tmp_path)


def test_mapped_columns_are_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pairs("x"))

    def map_columns(metadata: dict[str, Any]) -> None:
        metadata["configuration"] = {"delta.columnMapping.mode": "name"}
        schema = json.loads(metadata["schemaString"])
        for number, field in enumerate(schema["fields"], 1):
            name = {"delta.columnMapping.physicalName": f"col-{number}"}
            field["metadata"] = {"delta.columnMapping.id": number} | name
        metadata["schemaString"] = json.dumps(schema)

    rewrite(tmp_path / FIRST_LOG, "metaData", map_columns)
    versions = {"minReaderVersion": 2, "minWriterVersion": 5}
    rewrite(tmp_path / FIRST_LOG, "protocol", lambda protocol: protocol.update(versions))
    assert "maps its columns" in refused(tmp_path)


def test_a_log_that_the_library_cannot_read_is_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pairs("x"))
    (tmp_path / FIRST_LOG).write_text('{"add": {"path": "part-0.parquet"}}')
    assert f"{tmp_path} cannot be read as a Delta table" in refused(tmp_path)


def test_a_live_file_that_is_gone_is_said(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pairs("x"))
    write_deltalake(tmp_path, pairs("y"), mode="append")
    gone = next(tmp_path.glob("*.parquet"))
    gone.unlink()
    assert f"{gone.name}, which is not in the folder" in refused(tmp_path)


@pytest.mark.parametrize("library", ["deltalake", "pyiceberg"])
def test_without_its_library_a_table_is_refused_and_the_extra_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iceberg: Any, library: str
) -> None:
    write_deltalake(tmp_path / "delta", pairs("x"))
    for name in ("deltalake", "pyiceberg.table"):
        monkeypatch.setitem(sys.modules, name, None)
    place = tmp_path / "delta" if library == "deltalake" else tmp_path / "n" / "t"
    assert "pip install 'shardrank[lake]'" in refused(place)


def test_removed_files_of_an_iceberg_table_are_not_read(tmp_path: Path, iceberg: Any) -> None:
    place = tmp_path / "n" / "t"
    assert len(list((place / "data").glob("*.parquet"))) == 2
    assert documents(place) == ["new"]
    for part in (place / "data", place / "data" / "*.parquet"):
        assert f"is a part of the Iceberg table {place}" in refused(part)


def test_a_column_that_was_renamed_in_an_iceberg_table_is_refused(
    tmp_path: Path, iceberg: Any
) -> None:
    with iceberg.update_schema() as update:
        update.rename_column("doc", "text")
    assert "has renamed columns" in refused(tmp_path / "n" / "t")


def test_a_folder_called_data_is_no_table_for_that(tmp_path: Path) -> None:
    for name in ("data/a.parquet", "metadata/about.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (file,) = data_files(Location.parse(str(tmp_path / "data")))
    assert file.location.name == "a.parquet"


def test_hudi_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hoodie").mkdir()
    for name in (".hoodie/hoodie.properties", "a.parquet"):
        (tmp_path / name).touch()
    assert "is a Hudi table" in refused(tmp_path)
