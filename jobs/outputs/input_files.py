"""The input's files as a manifest keeps them, and what became of them since.

A file is the same by size and time, or where the time differs by its content, if that was kept.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs.digests import content_digest, ends_a_line
from shardrank.jobs.inputs.discovery import PARQUET, kind_of
from shardrank.jobs.inputs.forms import OpenedInput
from shardrank.jobs.inputs.lines import is_compressed
from shardrank.jobs.inputs.parquet import read_footer
from shardrank.jobs.inputs.paths import column_of
from shardrank.jobs.inputs.tables import DataFile, Table
from shardrank.jobs.storage import Location, list_files

_NUM_READERS = 8
DIGESTED_BYTES = 1 << 30
"""Of an input of at most so many bytes the content is kept as digests: a second or two."""

Entry = dict[str, Any]
"""A file: table, path, size_bytes, mtime_ns, num_rows and, where it is known, sha256."""
Job = dict[str, Any]
"""A job's fingerprint, as it is kept and compared: whole. `input` has its files."""


def input_files(
    opened: OpenedInput, known: Sequence[Entry], *, with_digests: bool = False
) -> list[Entry]:
    """The input's files as they are; one that is as `known` has it, or was only touched since, as
    that has it. with_digests: of all files, where the input is not too large for that.
    """
    before = {(entry["table"], entry["path"]): entry for entry in known}
    listed = list(_listed(opened))
    entries = [
        _as_known(_input_file(name, file, num_rows), before, file, columns)
        for name, file, num_rows, columns in listed
    ]
    if not with_digests or sum(file.size_bytes for _, file, _, _ in listed) > DIGESTED_BYTES:
        return entries
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return list(pool.map(_digested, listed, entries))


def _digested(
    listed: tuple[str, DataFile, int | None, Sequence[str] | None], entry: Entry
) -> Entry:
    """A file that cannot be read has none: its units say so when they are read."""
    _, file, _, columns = listed
    if "sha256" not in entry:
        with suppress(UnreadableInput):
            return entry | {"sha256": _digest(file, columns, entry)}
    return entry


def _listed(
    opened: OpenedInput,
) -> Iterator[tuple[str, DataFile, int | None, Sequence[str] | None]]:
    """(table, file, rows if it is known, the columns that are read) of each file."""
    for each in opened.tables:
        columns = sorted(set(each.table.columns.values()))
        for file, footer in zip(each.table.files, each.footers, strict=True):
            yield each.table.name, file, footer.num_rows if footer else None, columns
    if opened.run is not None:
        for place, info in list_files(Location.parse(opened.run)):
            is_parquet = kind_of(place.name) == PARQUET
            file = DataFile(place, info.size, info.mtime_ns or 0, is_parquet)
            yield "run", file, None, None


def _as_known(
    entry: Entry,
    known: Mapping[tuple[str, str], Entry],
    file: DataFile,
    columns: Sequence[str] | None,
) -> Entry:
    """What is known of a file that has not changed since, else the file as it is."""
    before = known.get((entry["table"], entry["path"]))
    if before is not None and before["size_bytes"] == entry["size_bytes"]:
        is_same = before["mtime_ns"] == entry["mtime_ns"] or (
            "sha256" in before and _digest(file, columns, before) == before["sha256"]
        )
        if is_same:
            return before
    return entry


def _digest(file: DataFile, columns: Sequence[str] | None, entry: Entry) -> str:
    """The digest of as much of the file as the entry knows."""
    if not file.is_parquet:
        return content_digest(file, (), entry["size_bytes"])
    footer = read_footer(file.location)
    paths = footer.schema.names if columns is None else columns
    names = sorted({column_of(footer.schema, path) for path in paths})
    num_rows = entry["num_rows"]
    return content_digest(file, names, footer.num_rows if num_rows is None else num_rows)


def _input_file(table: str, file: DataFile, num_rows: int | None) -> Entry:
    return {
        "table": table,
        "path": str(file.location),
        "size_bytes": file.size_bytes,
        "mtime_ns": file.mtime_ns,
        "num_rows": num_rows,
    }


def known_paths(job: Job) -> dict[str, list[str]]:
    """Table -> the paths of its files, in the order in which units count them."""
    paths: dict[str, list[str]] = {}
    for entry in job["input"]:
        paths.setdefault(entry["table"], []).append(entry["path"])
    return paths


def has_new_input(before: Job, now: Job) -> bool:
    """Whether the input is another one than the job was planned for."""
    is_same = before["units_sha256"] == now["units_sha256"]
    return not is_same or input_change(before["input"], now["input"]) is not None


_FILE_FACTS = ("size_bytes", "mtime_ns", "num_rows")


def input_change(before: Sequence[Entry], now: Sequence[Entry]) -> str | None:
    """What became of the input's files in one sentence's words, None if they are the same."""
    known = {(entry["table"], entry["path"]): entry for entry in before}
    found = {(entry["table"], entry["path"]): entry for entry in now}
    for place, entry in known.items():
        if place not in found:
            return f"{entry['path']} is gone"
        if any(found[place][name] != entry[name] for name in _FILE_FACTS):
            return f"{entry['path']} has changed: {_file_change(entry, found[place])}"
    new = [path for table, path in found if (table, path) not in known]
    if not new:
        return None
    more = f" and {len(new) - 1} more" if len(new) > 1 else ""
    return f"{new[0]}{more} came to it (--add-new scores what is new)"


def check_grown_files(directory: Location, job: Job, opened: OpenedInput) -> None:
    """Raises UsageError that names a file which did anything but stay, or grow at its end.

    A run's files are not looked at: its pairs are compared one by one.
    """
    found = {
        (name, str(file.location)): (file, columns) for name, file, _, columns in _listed(opened)
    }
    now = {(entry["table"], entry["path"]): entry for entry in input_files(opened, ())}
    for entry in job["input"]:
        place = entry["table"], entry["path"]
        if entry["table"] == "run":
            continue
        if place not in found:
            change = "is gone"
        elif all(now[place][name] == entry[name] for name in ("size_bytes", "mtime_ns")):
            continue
        elif "sha256" not in entry:
            change = f"has changed: {_file_change(entry, now[place])}"
        elif _digest(*found[place], entry) != entry["sha256"]:
            part = "rows" if entry["num_rows"] is not None else "bytes"
            num = entry["num_rows"] if entry["num_rows"] is not None else entry["size_bytes"]
            change = f"has changed: its first {num:,} {part} are not what they were"
        elif (unclear := _unclear_end(found[place][0], entry)) is not None:
            change = unclear
        else:
            continue
        raise UsageError(
            f"--add-new: {entry['path']} {change}; only new files and new rows at a file's end can "
            f"be added to {directory}"
        )


def _unclear_end(file: DataFile, entry: Entry) -> str | None:
    """Why it cannot be said that what came to a file of lines are more lines."""
    if file.is_parquet or file.size_bytes == entry["size_bytes"]:
        return None
    if file.is_pdf:
        return f"has changed: {_file_change(entry, entry | {'size_bytes': file.size_bytes})}"
    if is_compressed(file.location):
        return "has grown, and lines are added to compressed ones only as new files"
    if not ends_a_line(file, entry["size_bytes"]):
        return "has changed: its last line had no end, and goes on now"
    return None


def num_known(job: Job, table: Table) -> list[float]:
    """Rows, or bytes of lines, that the job knows of each file; of one that is the same, all."""
    known = {entry["path"]: entry for entry in job["input"] if entry["table"] == table.name}
    ends = []
    for file in table.files:
        entry = known.get(str(file.location), {"size_bytes": 0, "num_rows": 0})
        end = entry["size_bytes"] if entry["num_rows"] is None else entry["num_rows"]
        is_same = entry["num_rows"] is None and file.size_bytes == entry["size_bytes"]
        ends.append(math.inf if is_same else end)
    return ends


def _file_change(before: Entry, now: Entry) -> str:
    for name, noun in (("num_rows", "rows"), ("size_bytes", "bytes")):
        if before[name] != now[name]:
            return f"it had {before[name]:,} {noun} and has {now[name]:,}"
    if "sha256" in before:
        return f"it has its {now['size_bytes']:,} bytes still, and another content"
    then, today = (_time(entry["mtime_ns"]) for entry in (before, now))
    return (
        f"it was written on {then} and again on {today}, and of so large an input no content was "
        "kept to compare"
    )


def _time(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(mtime_ns / 1e9))
