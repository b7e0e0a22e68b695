"""The proof at the end of a job: every input pair has exactly one row, what the rows add up to, and
a hash of each unit's rows, by which a later reader sees that they are still those of the job.

Reads ids again from the input and from the output, and compares them unit by unit.
"""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import pyarrow as pa

from shardrank.jobs.errors import UsageError, VerificationError
from shardrank.jobs.inputs.forms import InputOptions, JobInput, open_job_input
from shardrank.jobs.outputs.done import check_strays, read_held
from shardrank.jobs.outputs.files import Output, read_scores
from shardrank.jobs.outputs.input_files import known_paths
from shardrank.jobs.outputs.job import check_same_input
from shardrank.jobs.outputs.manifest import Counts, Manifest
from shardrank.jobs.storage import Location
from shardrank.jobs.units.plan import Plan, Unit, plan_units, unit_name
from shardrank.jobs.units.reading import expected_ids

_NUM_THREADS = 4


def verify_output(output: str) -> Counts:
    """Verify a job's output directory, with nothing but what its manifest says of the input.

    Raises UsageError if the input is no longer what the job read, else VerificationError.
    """
    kept, manifest, plan = open_output(output)
    check_strays(kept, plan)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        counts = Counts.total(pool.map(partial(verify_unit, plan.input, kept), plan.units))
    _check_hashes(kept, manifest, counts.unit_hashes)
    return counts


def open_output(output: str) -> tuple[Output, Manifest, Plan]:
    """A job's complete output, and the plan that its manifest and its input give; raises as
    verify_output.
    """
    directory = Location.parse(output)
    manifest = Manifest.read(Output(directory))
    if manifest is None or manifest.input is None:
        raise UsageError(f"{directory} has no manifest.json that names the job's input")
    job, kept = manifest.job, manifest.output
    options = InputOptions(**manifest.input)
    opened = open_job_input(replace(options, maps=tuple(options.maps)))
    opened = opened.ordered_as(known_paths(job))
    held = read_held(kept, manifest)
    plan = plan_units(opened, job["unit_pairs"], job["order"], held=held)
    check_same_input(kept.directory, job, opened, plan)
    missing = kept.remaining(plan.units)
    if missing:
        raise VerificationError(
            f"{kept.directory}: {len(missing)} of {len(plan.units)} units have no score file, the "
            f"first is {unit_name(missing[0])}; `shardrank status` says how to go on"
        )
    return kept, manifest, plan


def _check_hashes(output: Output, manifest: Manifest, hashes: dict[str, str]) -> None:
    """Raises VerificationError for a unit whose rows are no longer those that the job had verified.

    A job that is going on again, or of a version without hashes, has none to compare with.
    """
    for unit, known in manifest.counts.unit_hashes.items() if manifest.counts else ():
        if hashes.get(unit) != known:
            raise VerificationError(
                f"{output.results}/{unit}.parquet has other rows than when the job ended; "
                "delete the file and run the same command again"
            )


def verify_units(job_input: JobInput, output: Output, units: Iterable[Unit]) -> Counts:
    return Counts.total(verify_unit(job_input, output, unit) for unit in units)


def verify_unit(job_input: JobInput, output: Output, unit: Unit) -> Counts:
    """Raises VerificationError that names the file and a pair that is missing or too many."""
    place = output.file(unit)
    rows = read_scores(place)
    found = Counter(zip(rows["query_id"].to_pylist(), rows["doc_id"].to_pylist(), strict=True))
    expected: Counter[tuple[str | int | None, str | int | None]] = Counter()
    num_queries = 0
    for query_id, doc_ids in expected_ids(job_input, unit):
        num_queries += 1
        expected.update((query_id, doc_id) for doc_id in doc_ids)
    if found != expected:
        raise VerificationError(f"{place}: {_difference(found, expected)}")
    return replace(_counts(rows, num_queries), unit_hashes={unit_name(unit): rows_hash(rows)})


def rows_hash(rows: pa.Table) -> str:
    """Equal for score files with the same columns and rows, in the same order, to the last bit."""
    digest = blake2b(repr(rows.schema.remove_metadata()).encode(), digest_size=16)
    for column in rows.columns:
        values = column.combine_chunks()
        digest.update(pa.record_batch([values], ["column"]).serialize())
    return digest.hexdigest()


def _difference(found: Counter[tuple], expected: Counter[tuple]) -> str:
    missing, extra = expected - found, found - expected
    kind, pairs = ("missing", missing) if missing else ("too many", extra)
    query_id, doc_id = next(iter(pairs))
    return (
        f"{missing.total()} pairs are missing and {extra.total()} too many ({kind}: query_id "
        f"{query_id!r}, doc_id {doc_id!r}); delete the file and run the same command again"
    )


def _counts(rows: pa.Table, num_queries: int) -> Counts:
    codes = [code for code in rows["error_code"].to_pylist() if code is not None]
    return Counts(
        num_queries,
        rows.num_rows,
        len(codes),
        sum(rows["is_truncated"].to_pylist()),
        sum(rows["num_tokens"].to_pylist()),
        sum(rows["num_visual_tokens"].to_pylist()),
        dict(Counter(codes)),
    )
