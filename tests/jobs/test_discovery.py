import os
from pathlib import Path

import pytest

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.discovery import data_files, nothing_found
from shardrank.jobs.storage import Location, write_atomically


def files(place: Path | str) -> list[str]:
    return [file.location.name for file in data_files(Location.parse(str(place)))]


def refused(place: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        files(place)
    return str(error.value)


def touch(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


@pytest.mark.parametrize("name", ["A.PARQUET", "a.parq", "a.pq", "a.ndjson", "a.JSONL.zst"])
def test_a_table_is_known_by_its_ending_in_any_case(tmp_path: Path, name: str) -> None:
    assert files(touch(tmp_path, name, "README.md", "_SUCCESS")) == [name]


def test_files_of_two_kinds_in_one_folder_are_refused_with_one_of_each(tmp_path: Path) -> None:
    sentence = refused(touch(tmp_path, "a.parquet", "b.parquet", "c.jsonl"))
    assert f"{tmp_path}/a.parquet and {tmp_path}/c.jsonl" in sentence
    assert files(tmp_path / "*.parquet") == ["a.parquet", "b.parquet"]
    assert "b.csv" in refused(touch(tmp_path / "other", "a.parquet", "b.csv"))


def test_a_folder_without_tables_says_what_is_there_and_what_counts(tmp_path: Path) -> None:
    touch(tmp_path, "data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    assert files(tmp_path) == []
    sentence = nothing_found(Location.parse(str(tmp_path)))
    assert "data-00000-of-00001.arrow" in sentence
    assert ".parquet, .parq, .pq, .jsonl, .ndjson, .tsv" in sentence
    assert "a.csv is not read" in refused(touch(tmp_path, "a.csv") / "a.csv")


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.parquet", "blobs/x")
    (tmp_path / "in" / "b.parquet").symlink_to("../blobs/x")
    assert files(tmp_path / "in") == ["a.parquet", "b.parquet"]
    (tmp_path / "in" / "c.parquet").symlink_to("nowhere")
    assert f"{tmp_path}/in/c.parquet leads nowhere" in refused(tmp_path / "in")
    assert "c.parquet" in refused(tmp_path / "in" / "*.parquet")
    assert files(tmp_path / "in" / "a*") == ["a.parquet"]


@pytest.mark.parametrize("links", [{"a/b": ".."}, {"a/b": "."}, {"a/b": "../b", "b/a": "../a"}])
def test_a_link_that_leads_in_a_circle_is_named(tmp_path: Path, links: dict[str, str]) -> None:
    touch(tmp_path, "a/x.parquet", "b/y.parquet")
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    assert f"the link {tmp_path}/{list(links)[-1]}".replace("/b/a", "/a/b/a") in refused(
        tmp_path / "a"
    )
    assert "leads in a circle" in refused(tmp_path / "a")


GLOBS = [
    ("*.parquet", ["p.parquet"]),
    ("**/*.parquet", ["p.parquet", "q.parquet", "r.parquet"]),
    ("x/**/*.parquet", ["q.parquet", "r.parquet"]),
    ("{x,z}/*.parquet", ["q.parquet"]),
    ("x/{y,z}", ["r.parquet"]),
    ("[!p]*", ["q.parquet", "r.parquet"]),
    ("*.jsonl", []),
]


@pytest.mark.parametrize("store", ["local", "s3"])
@pytest.mark.parametrize(("pattern", "expected"), GLOBS)
def test_a_star_stays_in_its_folder_and_two_stars_are_any_depth(
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    store: str,
    pattern: str,
    expected: list[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    base = str(tmp_path) if store == "local" else "s3://bucket/globs-of-tables"
    for name in ("p.parquet", "x/q.parquet", "x/y/r.parquet", "x/.hidden/s.parquet", "_t.parquet"):
        write_atomically(Location.parse(f"{base}/{name}"), b"")
    assert files(f"{base}/{pattern}") == expected


def test_a_file_uri_has_its_escapes_decoded(tmp_path: Path) -> None:
    touch(tmp_path / "a b", "x.parquet", "part-1.parquet")
    for form in (f"file://{tmp_path}", f"file://localhost{tmp_path}", f"file:{tmp_path}"):
        assert files(f"{form}/a%20b/x.parquet") == ["x.parquet"]
        assert files(f"{form}/a%20b/part-?.parquet") == ["part-1.parquet"]
    assert "another host, 'data'" in refused("file://data/x.parquet")


def test_a_directory_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", forbidden)  # the tests may run as root
    with pytest.raises(OSError, match="cannot be listed: Permission denied"):
        data_files(Location.parse(str(tmp_path)))
