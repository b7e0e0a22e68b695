"""The score rows of document-major units, and how they become score files by query.

Such a file is committed at once, as score files are. Its rows are sorted by place and it has one
row group a bucket, so that a bucket's task reads from each what it needs, and a little more.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardrank.jobs.errors import JobError
from shardrank.jobs.inputs.forms import JobInput
from shardrank.jobs.inputs.parquet import open_parquet
from shardrank.jobs.outputs.files import BY_DOCUMENT, Output, whole, write_unit
from shardrank.jobs.outputs.scores import DOCUMENT_SCHEMA, row_schema, with_known, with_summary
from shardrank.jobs.storage import Location, write_atomically
from shardrank.jobs.units.documents import DocumentPlan, DocumentUnit
from shardrank.jobs.units.plan import PairsUnit, Unit
from shardrank.jobs.units.reading import pair_row, read_ids

_NUM_READERS = 16
"""Files read at a time: on an object store each is a few requests that mostly wait."""


def write_by_document(
    output: Output, bucket_places: Sequence[int], unit: DocumentUnit, rows: pa.Table
) -> None:
    """Commit a unit's rows. bucket_places: the first place of each bucket, and the end."""
    table = with_summary(
        rows.select(DOCUMENT_SCHEMA.names).cast(DOCUMENT_SCHEMA).sort_by("place"), rows
    )
    bounds = np.searchsorted(table["place"].to_numpy(), bucket_places).tolist()
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for low, high in pairwise(bounds):
            writer.write_table(table.slice(low, high - low), row_group_size=max(1, high - low))
    write_atomically(output.file(unit), sink.getvalue())


def regroup(
    output: Output,
    job_input: JobInput,
    files: Sequence[Location],
    bucket: int,
    units: Sequence[tuple[int, PairsUnit]],
) -> int:
    """Write the score files of units of one bucket, each with its first place; counts pairs. One
    that is there was written by this task, before its process was killed and it was begun again.

    Raises JobError that says what to delete, if the files are not what they were written as.
    """
    missing = {unit.index for unit in output.remaining([unit for _, unit in units])}
    scored = read_bucket(files, bucket)
    places = scored["place"].to_numpy()
    for start, unit in units:
        if unit.index not in missing and not unit.kept:
            continue
        low, high = np.searchsorted(places, [start, start + unit.num_pairs])
        rows = _unit_rows(job_input, start, unit, scored.slice(low, high - low))
        write_unit(output, job_input, unit, rows)
    return sum(unit.num_pairs for _, unit in units)


def read_bucket(files: Sequence[Location], bucket: int) -> pa.Table:
    """The bucket's rows of all files, by place."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        tables = list(pool.map(partial(_read_row_group, bucket), files))
    rows = pa.concat_tables([DOCUMENT_SCHEMA.empty_table(), *tables])
    rows = rows.take(pa.array(np.argsort(rows["place"].to_numpy())))
    if (np.diff(rows["place"].to_numpy()) == 0).any():
        raise JobError(f"{BY_DOCUMENT}/ holds a pair twice; delete it and run the command again")
    return rows


def _read_row_group(bucket: int, file: Location) -> pa.Table:
    with whole(file), open_parquet(file) as opened:
        return opened.read_row_group(bucket, use_threads=False)


def rows_of(documents: DocumentPlan, units: Sequence[Unit], rows: pa.Table) -> pa.Table:
    """Those of a file's rows that belong to the given units in query order."""
    is_wanted = np.zeros(len(documents.unit_starts), bool)
    is_wanted[[unit.index for unit in units]] = True
    owner = np.searchsorted(documents.unit_starts, rows["place"].to_numpy(), "right") - 1
    return rows.filter(pa.array(is_wanted[owner]))


def errors_by_document(
    files: Sequence[Location], documents: DocumentPlan, units: Sequence[Unit]
) -> Counter[str]:
    """The errors that the files hold for the given units in query order."""
    errors: Counter[str] = Counter()
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for rows in pool.map(_read_errors, files):
            errors.update(rows_of(documents, units, rows)["error_code"].drop_null().to_pylist())
    return errors


def _read_errors(file: Location) -> pa.Table:
    with whole(file), open_parquet(file) as opened:
        return opened.read(["place", "error_code"], use_threads=False)


def _unit_rows(job_input: JobInput, start: int, unit: PairsUnit, scored: pa.Table) -> pa.Table:
    """What write_unit takes: every pair with its score, or with the error that its ids give it."""
    pairs = [
        pair_row(query, index, candidate)
        for query in read_ids(job_input, unit)
        for index, candidate in enumerate(query.candidates)
    ]
    rows = pa.Table.from_pylist(pairs, schema=row_schema(job_input))
    index = np.full(unit.num_pairs, -1)
    index[scored["place"].to_numpy() - start] = np.arange(scored.num_rows)
    is_known_bad = rows["error_code"].is_valid().to_numpy()
    index[is_known_bad] = -1
    num_missing = int((index < 0).sum() - is_known_bad.sum())
    if num_missing:
        raise JobError(
            f"{BY_DOCUMENT}/ lacks {num_missing} pairs; delete it and run the command again"
        )
    return with_known(rows, scored.take(pa.array(index, mask=index < 0)))
