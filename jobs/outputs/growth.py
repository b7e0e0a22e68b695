"""How an output goes on with an input that grew: what it has already is found and written down.

The record stays: by it every later run, and the proof, cut the input into the same units.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import OpenedInput
from shardrank.jobs.inputs.joins import id_codes, scan_columns
from shardrank.jobs.inputs.tables import OpenedTable
from shardrank.jobs.outputs.done import UnitFile, unit_files
from shardrank.jobs.outputs.files import (
    BY_DOCUMENT,
    ID_ERRORS,
    SUCCESS,
    TREC_RUN,
    Output,
    read_scores,
)
from shardrank.jobs.outputs.input_files import Job, check_grown_files, input_files, num_known
from shardrank.jobs.outputs.job import as_kept, check_same_job
from shardrank.jobs.outputs.manifest import Growth, Manifest
from shardrank.jobs.storage import delete_file, list_directory, write_atomically
from shardrank.jobs.units.growth import Held

_NUM_READERS = 16


def find_held(output: Output, manifest: Manifest, opened: OpenedInput) -> Held:
    """What the output has now, as its score files say.

    Raises UsageError for an input that did anything but grow, and for an output in the middle of
    something that would be lost.
    """
    check_grown_files(output.directory, manifest.job, opened)
    files = unit_files(output.results)
    if list_directory(output.directory.child(BY_DOCUMENT)):
        raise UsageError(
            f"--add-new: the documents of {output.directory} are scored and not regrouped yet; "
            f"finish the job without what is new, or delete {BY_DOCUMENT}/ to score them again"
        )
    is_whole = len(files) in (0, manifest.job["num_units"])
    if manifest.job["order"] == "document" and not is_whole:
        raise UsageError(
            f"--add-new: {output.directory} lacks score files; finish the job without what is new"
        )
    if opened.form == "sets":
        return Held(_sets(output, files), True)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        tables = list(pool.map(partial(_pairs_of, output), files))
    held = pa.concat_tables(tables or [_PAIRS.empty_table()])
    _check_instructions(manifest.job, opened, held)
    if opened.form == "pairs":
        _check_first_rows(manifest.job, opened.queries)
    return Held(held, True)


_PAIRS = pa.schema(
    [
        ("unit", pa.int32()),
        ("query_id", pa.null()),
        ("doc_id", pa.null()),
        ("is_scored", pa.bool_()),
    ]
)


def _check_instructions(job: Job, opened: OpenedInput, held: pa.Table) -> None:
    """Raises UsageError for an instruction that came to a query which was scored without one."""
    if opened.instructions is None:
        return
    scanned = scan_columns(opened.instructions, ["query_id"])
    is_old = _is_old(job, opened.instructions, scanned)
    ids = scanned["query_id"].cast(pa.large_string())
    known = ids.filter(pa.array(is_old))
    new = ids.filter(pa.array(~is_old)).unique()
    new = new.filter(pc.invert(pc.is_in(new, value_set=known.combine_chunks())))
    scored = held["query_id"].cast(pa.large_string()).combine_chunks()
    late = new.filter(pc.is_in(new, value_set=scored)).drop_null()
    if len(late):
        raise UsageError(
            f"--add-new: query_id {late[0].as_py()!r} has rows already, and an instruction comes "
            "to it now; only what is new can have a new instruction"
        )


def _check_first_rows(job: Job, opened: OpenedTable) -> None:
    """Raises UsageError for a new row before an old one that has the same pair, or query."""
    scanned = scan_columns(opened, ["query_id", "doc_id"])
    is_old = _is_old(job, opened, scanned)
    is_valid = pc.and_(scanned["query_id"].is_valid(), scanned["doc_id"].is_valid()).to_numpy()
    scanned, is_old = scanned.filter(pa.array(is_valid)), is_old[is_valid]
    queries, documents = (
        id_codes(scanned[name]).astype(np.int64) for name in ("query_id", "doc_id")
    )
    for codes in (queries, queries * (int(documents.max(initial=0)) + 1) + documents):
        firsts = np.unique(codes, return_index=True)[1]
        late = firsts[~is_old[firsts] & np.isin(codes[firsts], codes[is_old])]
        if len(late):
            row = scanned.slice(int(late[0]), 1).to_pylist()[0]
            raise UsageError(
                f"--add-new: {opened.table.files[row['file']].location} has a new row of query_id "
                f"{row['query_id']!r} and doc_id {row['doc_id']!r} before the rows that a later "
                "file has of it already; put new rows into new files"
            )


def _is_old(job: Job, opened: OpenedTable, scanned: pa.Table) -> np.ndarray:
    ends = np.array(num_known(job, opened.table))
    return scanned["position"].to_numpy() < ends[scanned["file"].to_numpy()]


def _sets(output: Output, files: Sequence[UnitFile]) -> pa.Table:
    rows = []
    for file in files:
        if file.place is None:
            raise UsageError(
                f"--add-new: {file.name}.parquet in {output.directory} was written by a version "
                "that did not note which rows it has; name another --output"
            )
        rows.append((file.number, *file.place, file.num_pairs))
    names = ("unit", "file", "start", "stop", "num_pairs")
    columns = zip(*rows, strict=True) if rows else [[]] * len(names)
    arrays = [pa.array(column, pa.int64()) for column in columns]
    return pa.table(arrays, names=names)


def _pairs_of(output: Output, file: UnitFile) -> pa.Table:
    place = output.results.child(f"{file.name}.parquet")
    rows = read_scores(place, ["query_id", "doc_id", "error_code"])
    is_scored = [code not in ID_ERRORS for code in rows["error_code"].to_pylist()]
    return pa.table(
        {
            "unit": pa.array([file.number] * rows.num_rows, pa.int32()),
            "query_id": rows["query_id"],
            "doc_id": rows["doc_id"],
            "is_scored": pa.array(is_scored, pa.bool_()),
        }
    )


def begin_growth(manifest: Manifest, job: Job, opened: OpenedInput, held: Held) -> None:
    """The output is of the grown input from now on; whenever this ends, it is of one of the two."""
    output, before, earlier = manifest.output, manifest.job, manifest.growth
    unchanged = {name: before[name] for name in ("input", "num_units", "units_sha256")}
    check_same_job(output.directory, before, job | unchanged)
    manifest.guard()
    delete_file(output.directory.child(SUCCESS))
    num = earlier.num + 1 if earlier else 1
    record = f"growth-{num}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(held.table, sink, compression="zstd")
    write_atomically(output.directory.child(record), sink.getvalue())
    files = input_files(opened, job["input"], with_digests=True)
    manifest.job = as_kept(job | {"input": files})
    with_trec_run = had_trec_run(output) or manifest.lacks_trec_run
    manifest.growth = Growth(record, num, True, with_trec_run or None)
    manifest.status = "running"
    manifest.save()
    if earlier:
        delete_file(output.directory.child(earlier.record))


def had_trec_run(output: Output) -> bool:
    """Whether an earlier run wrote one, which is to be of the grown input too."""
    return output.directory.child(TREC_RUN).exists()
