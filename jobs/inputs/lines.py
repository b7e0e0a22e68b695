"""JSON lines and tab-separated files, plain or gzip: a row's position is its byte offset.

Where a function is given a tab-separated file's column names, none are for JSON lines; a first line
that has just these is their header.
"""

import codecs
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np

from shardrank.jobs.errors import UnreadableInput
from shardrank.jobs.inputs.paths import value_at
from shardrank.jobs.storage import Location, open_input


@contextmanager
def open_lines(location: Location) -> Iterator[BinaryIO]:
    """Raises UnreadableInput that names the file, also for what goes wrong while it is read."""
    try:
        with open_input(location) as stream:
            raw = cast(BinaryIO, io.BufferedReader(stream, 1 << 20))
            if location.name.endswith(".gz"):
                with gzip.open(raw) as plain:
                    yield cast(BinaryIO, plain)
            else:
                yield raw
    except (OSError, EOFError) as error:
        raise UnreadableInput(f"{location} cannot be read: {error}") from error


def text_lines(location: Location) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of every line that is not empty."""
    with open_lines(location) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _decode(location, f"line {number}", line)


def is_tsv(location: Location) -> bool:
    """Whether these are tab-separated lines: by the name's ending, or else by the first line."""
    name = location.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".tsv")):
        return name.endswith(".tsv")
    return not next(text_lines(location), (0, "{"))[1].removeprefix("\ufeff").startswith("{")


def scan_rows(
    location: Location, tsv_columns: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte offset, row) of every line that is not empty."""
    with open_lines(location) as stream:
        offset = 0
        for line in stream:
            if line.strip() and not (offset == 0 and _is_header(line, tsv_columns)):
                yield offset, _parse(location, offset, line, tsv_columns)
            offset += len(line)


def fetch_rows(
    location: Location,
    positions: np.ndarray,
    columns: Sequence[str],
    tsv_columns: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_lines(location) as stream:
        for offset in np.unique(positions).tolist():
            stream.seek(offset)
            row = _parse(location, offset, stream.readline(), tsv_columns)
            yield offset, {name: value_at(row, name) for name in columns}


def _is_header(line: bytes, tsv_columns: Sequence[str]) -> bool:
    text = line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n").decode("utf-8", "replace")
    return bool(tsv_columns) and text.split("\t") == list(tsv_columns)


def _parse(
    location: Location, offset: int, line: bytes, tsv_columns: Sequence[str]
) -> dict[str, Any]:
    text = _decode(location, f"byte {offset}", line)
    if offset == 0:
        text = text.removeprefix("\ufeff")
    if tsv_columns:
        return _parse_tsv(location, offset, text, tsv_columns)
    try:
        row = json.loads(text)
    except ValueError as error:
        raise UnreadableInput(f"{location}, byte {offset}: not a JSON line: {error}") from error
    if not isinstance(row, dict):
        raise UnreadableInput(f"{location}, byte {offset}: not a JSON object")
    return row


def _parse_tsv(location: Location, offset: int, text: str, names: Sequence[str]) -> dict[str, Any]:
    values = text.split("\t")
    if len(values) != len(names):
        raise UnreadableInput(
            f"{location}, byte {offset}: expected {len(names)} tab-separated columns "
            f"({', '.join(names)}), got {len(values)}"
        )
    return dict(zip(names, values, strict=True))


def _decode(location: Location, place: str, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{location}, {place}: not UTF-8 text") from error
