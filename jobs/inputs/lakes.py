"""Delta and Iceberg tables in folders: which of the files are live, asked of the formats' own
libraries. What an update replaced stays in the folder until somebody cleans up.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa

from shardrank.jobs.errors import UsageError
from shardrank.jobs.storage import Files, Location, list_directory

_MARKS = (
    ("Delta", re.compile(r"(.*)/_delta_log/.*")),
    ("Iceberg", re.compile(r"(.*)/metadata/[^/]+\.metadata\.json")),
    ("Hudi", re.compile(r"(.*)/\.hoodie/.*")),
)
_OPTIONS = {
    "endpoint_override": ("AWS_ENDPOINT_URL", "s3.endpoint"),
    "region": ("AWS_REGION", "s3.region"),
    "access_key": ("AWS_ACCESS_KEY_ID", "s3.access-key-id"),
    "secret_key": ("AWS_SECRET_ACCESS_KEY", "s3.secret-access-key"),
    "session_token": ("AWS_SESSION_TOKEN", "s3.session-token"),
}
"""A bucket's URI -> deltalake's name, pyiceberg's name."""


def live_files(found: Files, everything: Files) -> Files:
    """`found` without the files that are no longer of their Delta or Iceberg table.

    Raises UsageError for a table that is not read right by reading its live files.
    """
    if not found:
        return found
    paths = {place.path for place, _ in everything}
    for root, kind in _tables(found, paths).items():
        inside = f"{root.path}/"
        if not any(place.path.startswith(inside) for place, _ in found):
            continue
        live = set(_LIVE[kind](root, paths))
        lost = sorted(live - paths)
        if lost:
            raise UsageError(f"{root}: its {kind} table has {lost[0]}, which is not in the folder")
        found = [
            (place, info)
            for place, info in found
            if not place.path.startswith(inside) or place.path in live
        ]
    return found


def _tables(found: Files, paths: Iterable[str]) -> dict[Location, str]:
    """The roots of the tables in what was listed. Raises UsageError where only a part of a table
    was, such as a partition.
    """
    first, tables = found[0][0], {}
    for path in paths:
        for kind, mark in _MARKS:
            match = mark.fullmatch(path)
            if match:
                tables[Location(first.root, match[1])] = kind
    above = Location(first.root, os.path.dirname(first.path))
    while "=" in above.name or above.name == "data":
        above = Location(first.root, os.path.dirname(above.path))
        logs = [] if above in tables else map(above.child, ("_delta_log", "metadata", ".hoodie"))
        for place in (place for log in logs for place, _ in list_directory(log)):
            for kind, mark in _MARKS:
                if mark.fullmatch(place.path):
                    raise UsageError(f"{first} is a part of the {kind} table {above}: name it")
    return tables


def _library(name: str, root: Location, kind: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{root} is a {kind} table, whose folder holds removed rows too: to read the live "
            "ones, pip install 'shardrank[lake]'"
        ) from error


def _live_in_delta(root: Location, paths: set[str]) -> Iterator[str]:
    deltalake = _library("deltalake", root, "Delta")
    try:
        table = deltalake.DeltaTable(_uri(root), storage_options=_options(root, 0) or None)
        mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
        uris = table.file_uris()
        deleted = pa.RecordBatchReader.from_stream(table.deletion_vectors())
        num_deleted = sum(batch.num_rows for batch in deleted)
    except Exception as error:  # the library has no common error: some are of Rust, some built-in
        raise UsageError(f"{root} cannot be read as a Delta table: {error}") from error
    if mapping != "none":
        raise UsageError(f"{root}: this Delta table maps its columns, {_WRITE_AGAIN}")
    if num_deleted:
        raise UsageError(f"{root}: this Delta table has deletion vectors, {_WRITE_AGAIN}")
    for uri in uris:
        yield _path(uri)


_WRITE_AGAIN = "so that its files alone do not tell its rows; write it again without, or as Parquet"


def _live_in_iceberg(root: Location, paths: set[str]) -> Iterator[str]:
    pyiceberg = _library("pyiceberg.table", root, "Iceberg")
    try:
        metadata = _uri(root.child("metadata").child(_newest_metadata(root, paths)))
        table = pyiceberg.StaticTable.from_metadata(metadata, _options(root, 1))
        tasks = list(table.scan().plan_files())
        schemas = list(table.schemas().values())
        names = {(s.find_field(name).field_id, name) for s in schemas for name in s.column_names}
        has_defaults = any(field.initial_default is not None for field in table.schema().fields)
    except Exception as error:  # it has no common error either
        raise UsageError(f"{root} cannot be read as an Iceberg table: {error}") from error
    if any(task.delete_files for task in tasks):
        raise UsageError(f"{root}: this Iceberg table has delete files, {_WRITE_AGAIN}")
    if has_defaults or not len(names) == len(dict(names)) == len({name for _, name in names}):
        raise UsageError(f"{root}: this Iceberg table has renamed columns, {_WRITE_AGAIN}")
    for task in tasks:
        yield _path(task.file.file_path)


def _newest_metadata(root: Location, paths: set[str]) -> str:
    """The file of the highest version: `v3.metadata.json`, `00003-<uuid>.metadata.json`."""
    start = root.child("metadata").path + "/"
    names = [path.removeprefix(start) for path in paths if path.startswith(start)]
    versions = {
        name: int(match[1])
        for name in names
        if (match := re.fullmatch(r"v?(\d+).*\.metadata\.json", name))
    }
    newest = [name for name, version in versions.items() if version == max(versions.values())]
    if len(newest) != 1:
        raise ValueError(f"{len(newest)} metadata files are of the highest version")
    return newest[0]


def _no_hudi(root: Location, paths: set[str]) -> Iterator[str]:
    raise UsageError(f"{root} is a Hudi table, which is not read; write it as Parquet")


_LIVE: dict[str, Callable[[Location, set[str]], Iterator[str]]] = {
    "Delta": _live_in_delta,
    "Iceberg": _live_in_iceberg,
    "Hudi": _no_hudi,
}


def _uri(place: Location) -> str:
    return place.path if place.is_local else str(place)


def _path(uri: str) -> str:
    if "://" not in uri:
        return uri
    parts = urlsplit(uri, allow_fragments=False)
    return unquote(parts.path) if parts.scheme == "file" else parts.netloc + parts.path


def _options(root: Location, library: int) -> dict[str, str]:
    """What the bucket's URI says about its store, in the library's words; else the usual variables
    hold for it as well.
    """
    given = dict(parse_qsl(urlsplit(root.root).query))
    if "endpoint_override" in given and "://" not in given["endpoint_override"]:
        given["endpoint_override"] = (
            f"{given.get('scheme', 'https')}://{given['endpoint_override']}"
        )
    options = {names[library]: given[name] for name, names in _OPTIONS.items() if name in given}
    is_plain = library == 0 and root.root.startswith("s3")
    return options | ({"AWS_ALLOW_HTTP": "true"} if is_plain else {})
