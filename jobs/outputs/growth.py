"""How an output goes on with an input that grew: what it has already is found and written down.

The record stays: by it every later run, and the proof, cut the input into the same units.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import OpenedInput
from shardrank.jobs.outputs.files import (
    ID_ERRORS,
    PARTS,
    SCORES,
    SUCCESS,
    TREC_RUN,
    Output,
    read_scores,
)
from shardrank.jobs.outputs.manifest import (
    Manifest,
    check_grown_files,
    check_same_job,
    input_files,
    save_manifest,
)
from shardrank.jobs.outputs.status import UnitFile, unit_files
from shardrank.jobs.storage import delete_file, list_directory, write_atomically
from shardrank.jobs.units.growth import Held

_NUM_READERS = 16


def find_held(output: Output, manifest: Manifest, opened: OpenedInput) -> Held:
    """What the output has now, as its score files say.

    Raises UsageError for an input that did anything but grow, and for an output in the middle of
    something that would be lost.
    """
    check_grown_files(output, manifest, opened)
    files = unit_files(output.directory.child(SCORES))
    if list_directory(output.directory.child(PARTS)):
        raise UsageError(
            f"--add-new: the documents of {output.directory} are scored and not regrouped yet; "
            f"finish the job without what is new, or delete {PARTS}/ to score them again"
        )
    if manifest["job"]["order"] == "document" and len(files) != manifest["job"]["num_units"]:
        raise UsageError(
            f"--add-new: {output.directory} lacks score files; finish the job without what is new"
        )
    if opened.form == "sets":
        return Held(_sets(output, files), True)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        tables = list(pool.map(partial(_pairs_of, output), files))
    return Held(pa.concat_tables(tables), True)


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
    place = output.directory.child(SCORES).child(f"{file.name}.parquet")
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


def begin_growth(
    output: Output, manifest: Manifest, job: Manifest, opened: OpenedInput, held: Held
) -> None:
    """The output is of the grown input from now on; whenever this ends, it is of one of the two."""
    unchanged = ("input", "num_units", "units_sha256")
    before = manifest["job"]
    check_same_job(output, manifest, job | {name: before[name] for name in unchanged})
    delete_file(output.directory.child(SUCCESS))
    earlier = manifest.get("growth", {"record": None, "num": 0})
    num = earlier["num"] + 1
    record = f"growth-{num}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(held.table, sink, compression="zstd")
    write_atomically(output.directory.child(record), sink.getvalue())
    files = input_files(opened, job["input"], with_digests=True)
    manifest["job"] = job | {"input": files}
    manifest["growth"] = {"record": record, "num": num, "is_open": True}
    manifest["status"] = "running"
    save_manifest(output, manifest)
    if earlier["record"]:
        delete_file(output.directory.child(earlier["record"]))


def had_trec_run(output: Output) -> bool:
    """Whether an earlier run wrote one, which is to be of the grown input too."""
    return output.directory.child(TREC_RUN).exists()
