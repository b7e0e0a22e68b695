"""JSON lines and tab-separated files, plain or gzip: a row's position is its byte offset."""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np

from shardrank.jobs.errors import UnreadableInput
from shardrank.jobs.storage import Location, open_input

MSMARCO_COLUMNS = ("qid", "pid", "query", "passage")
"""The top1000 files of MS MARCO have no header: these are their four columns."""


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


def scan_rows(location: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte offset, row) of every line that is not empty."""
    with open_lines(location) as stream:
        offset = 0
        for line in stream:
            if line.strip():
                yield offset, _parse(location, offset, line)
            offset += len(line)


def fetch_rows(
    location: Location, positions: np.ndarray, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_lines(location) as stream:
        for offset in np.unique(positions).tolist():
            stream.seek(offset)
            row = _parse(location, offset, stream.readline())
            yield offset, {name: row.get(name) for name in columns}


def _parse(location: Location, offset: int, line: bytes) -> dict[str, Any]:
    text = _decode(location, f"byte {offset}", line)
    if location.name.removesuffix(".gz").endswith(".tsv"):
        return _parse_tsv(location, offset, text)
    try:
        row = json.loads(text)
    except ValueError as error:
        raise UnreadableInput(f"{location}, byte {offset}: not a JSON line: {error}") from error
    if not isinstance(row, dict):
        raise UnreadableInput(f"{location}, byte {offset}: not a JSON object")
    return row


def _parse_tsv(location: Location, offset: int, text: str) -> dict[str, Any]:
    values = text.split("\t")
    if len(values) != len(MSMARCO_COLUMNS):
        raise UnreadableInput(
            f"{location}, byte {offset}: expected {len(MSMARCO_COLUMNS)} tab-separated columns "
            f"({', '.join(MSMARCO_COLUMNS)}), got {len(values)}"
        )
    return dict(zip(MSMARCO_COLUMNS, values, strict=True))


def _decode(location: Location, place: str, line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{location}, {place}: not UTF-8 text") from error
