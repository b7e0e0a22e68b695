import os
from pathlib import Path

import pytest

from shardrank.jobs.errors import UsageError
from shardrank.jobs.storage import (
    Location,
    list_directory,
    list_files,
    read_bytes,
    remove_directory,
    remove_leftovers,
    write_atomically,
)


def names(uri: str) -> list[str]:
    return [place.name for place, _ in list_files(Location.parse(uri))]


def test_a_directory_is_listed_in_order_without_hidden_names(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/z.parquet", "_SUCCESS", ".part.tmp", "_temporary/x.parquet"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert names(str(tmp_path)) == ["z.parquet", "b.parquet"]
    assert names(f"file://{tmp_path}/b.parquet") == ["b.parquet"]
    assert names(str(tmp_path / "*.parquet")) == ["b.parquet"]
    assert names(str(tmp_path / "**" / "*.parquet")) == ["z.parquet", "b.parquet"]
    assert names(str(tmp_path / "a" / "nothing*")) == []
    assert names(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("name", ["run[lr=1e-5]", "what?", "all*"])
@pytest.mark.parametrize("store", ["local", "s3"])
def test_a_directory_that_is_there_is_no_glob(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: str, name: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    base = tmp_path if store == "local" else "s3://bucket/globs"
    place = Location.parse(str(base)).child(name)
    write_atomically(place.child("a.parquet"), b"content")
    other = Location.parse(str(base)).child("all-others").child("b.parquet")
    write_atomically(other, b"content")
    for found in (list_files(place), list_files(place.child("a.parquet")), list_directory(place)):
        assert [file.path for file, _ in found] == [place.child("a.parquet").path]
    assert read_bytes(place.child("a.parquet")) == b"content"
    remove_directory(place)
    assert not place.exists() and list_directory(place) == []
    assert not name.endswith("*") or [file for file, _ in list_files(place)] == [other]


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    place = Location.parse(str(tmp_path / "new" / "file"))
    write_atomically(place, b"one")
    write_atomically(place, b"two")
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"two"]


def test_a_young_temporary_file_may_be_a_living_writers(tmp_path: Path) -> None:
    for name in ("._RUNNING.0a1b2c3d.tmp", ".manifest.json.0a1b2c3d.tmp", ".mine.tmp"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".manifest.json.0a1b2c3d.tmp", (0, 0))
    os.utime(tmp_path / ".mine.tmp", (0, 0))
    remove_leftovers(Location.parse(str(tmp_path)), older_than_s=60)
    assert {path.name for path in tmp_path.iterdir()} == {"._RUNNING.0a1b2c3d.tmp", ".mine.tmp"}
    remove_leftovers(Location.parse(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


def test_a_temporary_file_that_is_renamed_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "listdir", lambda path: [".part-000001.parquet.0a1b2c3d.tmp"])
    for older_than_s in (None, 60):
        remove_leftovers(Location.parse(str(tmp_path)), older_than_s)


def test_what_is_shown_of_a_uri_has_no_credentials() -> None:
    place = Location.parse("s3://bucket/data/?endpoint_override=h:1&access_key=A&secret_key=B")
    assert str(place.child("x.parquet")) == "s3://bucket/data/x.parquet"
    with pytest.raises(UsageError, match="the bucket is missing"):
        Location.parse("s3:///data")


@pytest.mark.parametrize("store", ["local", "s3"])
def test_a_directory_is_removed_with_what_it_holds_and_nothing_else(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    base = str(tmp_path) if store == "local" else "s3://bucket/removing"
    place = Location.parse(base)
    for name in ("parts/a.parquet", "parts/b.parquet", "scores/a.parquet"):
        write_atomically(place.child(name), b"content")
    for _ in range(2):  # the second time there is nothing
        remove_directory(place.child("parts"))
        assert [found.path for found, _ in list_files(place)] == [f"{place.path}/scores/a.parquet"]
    assert not place.child("parts").exists()
