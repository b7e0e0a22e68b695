"""PDF files as a corpus: a row a page, which is drawn when its content is read.

A row's position is its page's number from 1; 0 is of a file that cannot be opened, whose one row
has the error that reading it gives.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa

from shardrank.actors.errors import MediaError, MediaTooLarge, PdfDecodeError
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media.video_process import MAX_PROCESSES, VideoProcesses
from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs.discovery import DataFile
from shardrank.jobs.inputs.lines import Scan
from shardrank.jobs.storage import Location, read_bytes

MAX_PAGES = 1_000
_FILES_A_PROCESS = 100
"""Counting their pages takes about as long as starting another."""
_SCHEMA = pa.schema([("doc_id", pa.large_string()), ("pdf", pa.null()), ("page", pa.null())])


def scan_files(files: Sequence[DataFile], max_pages: int) -> list[Scan]:
    """The pages of each file, counted in guarded processes. A file of more than max_pages cannot be
    opened. Raises UnreadableInput for one that the storage does not give.
    """
    if find_spec("pypdfium2") is None:
        raise UsageError("reading PDF files needs pypdfium2: pip install pypdfium2")
    num_processes = min(MAX_PROCESSES, 1 + len(files) // _FILES_A_PROCESS)
    processes = VideoProcesses(num_processes, decodes_videos=False)

    def scanned(file: DataFile) -> Scan:
        num_pages = _num_pages(file.location, processes, max_pages)
        numbers = np.arange(1, num_pages + 1) if num_pages else np.zeros(1, np.int64)
        ids = [page_id(file.pdf_name, number) for number in numbers.tolist()]
        columns = {"doc_id": pa.array(ids, pa.large_string()), "position": pa.array(numbers)}
        return Scan(_SCHEMA, pa.table(columns), file.size_bytes * len(ids))

    with ThreadPoolExecutor(num_processes) as pool:
        return list(pool.map(scanned, files))


def page_id(name: str, number: int) -> str:
    return f"{name}#page={number}" if number else name


def fetch_rows(file: DataFile, positions: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    """(page number, row) of the wanted pages, which share the file's bytes."""
    content = _read(file.location)
    for number in np.unique(positions).tolist():
        row = {"doc_id": page_id(file.pdf_name, number), "pdf": content}
        yield number, row | {"page": number or None}


def _num_pages(location: Location, processes: VideoProcesses, max_pages: int) -> int:
    """0 of a file that cannot be opened."""
    source = location.path if location.is_local else _read(location)
    try:
        return processes.num_pdf_pages(source, MediaReader(), max_pages)
    except (PdfDecodeError, MediaTooLarge):
        return 0
    except MediaError as error:
        raise UnreadableInput(f"{location} cannot be read: {error}") from error


def _read(location: Location) -> bytes:
    try:
        return read_bytes(location)
    except OSError as error:
        raise UnreadableInput(f"{location} cannot be read: {error}") from error
