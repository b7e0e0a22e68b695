"""The run that a search leaves: a Parquet or a TREC file, written as its queries are done."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.discovery import PARQUET, kind_of
from shardrank.jobs.outputs.files import trec_lines
from shardrank.jobs.storage import Location, write_stream

_TREC = (".trec", ".txt")


def check_run_place(output: str) -> None:
    """Raises UsageError for a name that does not say what the file is."""
    place = Location.parse(output)
    if kind_of(place.name) != PARQUET and not place.name.endswith(_TREC):
        raise UsageError(f"--output must end in .parquet, .trec or .txt, got {output}")
    if place.exists() and not place.is_file:
        raise UsageError(f"--output {output} is a directory: name a file")


def write_run(output: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> Location:
    """Write query_id, doc_id, rank, score of all tables, whole or not at all."""
    place = Location.parse(output)
    is_trec = place.name.endswith(_TREC)
    write_stream(place, _trec(tables) if is_trec else _parquet(schema, tables))
    return place


def _trec(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    for table in tables:
        rows = table.rename_columns(["query_id", "doc_id", "rank", "logit"])
        yield "".join(trec_lines(rows, "shardrank")).encode()


def _parquet(schema: pa.Schema, tables: Iterable[pa.Table]) -> Iterator[bytes]:
    written = _Written()
    with pq.ParquetWriter(pa.PythonFile(written, "w"), schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            yield written.taken()
    yield written.taken()


class _Written:
    """What was written since it was last taken, as a file that is written from its start on."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, content: bytes) -> int:
        self._parts.append(bytes(content))
        self._size += len(content)
        return len(content)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
