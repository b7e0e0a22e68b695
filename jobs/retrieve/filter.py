"""The rows of a corpus for which a condition holds, in SQL as DuckDB has it."""

from importlib import import_module
from typing import Any

import pyarrow.dataset as ds

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.discovery import JSON_LINES, PARQUET, kind_of
from shardrank.jobs.inputs.tables import OpenedTable
from shardrank.jobs.retrieve.vectors import Id

_BATCH_ROWS = 65_536
_FORMATS = {PARQUET: "parquet", JSON_LINES: "json"}


def matching_ids(corpus: OpenedTable, where: str) -> frozenset[Id]:
    """The ids of the rows that match; of the corpus only what the condition names is read, bit by
    bit. Raises UsageError for a condition that is none, or names what is not there.
    """
    sql = duckdb()
    rows = _dataset(corpus)
    path = corpus.table.columns["doc_id"]
    id_ = ".".join('"{}"'.format(name.replace('"', '""')) for name in path.split("."))
    connection = sql.connect()
    try:
        # A condition is one over these rows: no other file, and no other statement.
        connection.execute("SET enable_external_access = false")
        matching = connection.from_arrow(rows).filter(where).project(id_)
        batches = matching.to_arrow_reader(_BATCH_ROWS)
        found = (id_ for batch in batches for id_ in batch.column(0).to_pylist())
        return frozenset(id_ for id_ in found if id_ is not None)
    except sql.Error as error:
        raise UsageError(f"--where {where!r}: {str(error).splitlines()[0]}") from error
    finally:
        connection.close()


def duckdb() -> Any:
    """The package. Raises UsageError where it is not installed."""
    try:
        return import_module("duckdb")
    except ModuleNotFoundError as error:
        raise UsageError(
            "--where needs the package duckdb: pip install 'shardrank[retrieve]'"
        ) from error


def _dataset(corpus: OpenedTable) -> ds.Dataset:
    files = [file for file, _ in corpus.filled]
    first = files[0].location
    kind = PARQUET if files[0].is_parquet else kind_of(first.name)
    if kind not in _FORMATS:
        raise UsageError(f"--where reads a corpus of Parquet or JSON lines, and {first} is neither")
    paths = [file.location.path for file in files]
    return ds.dataset(paths, filesystem=first.filesystem, format=_FORMATS[kind])
