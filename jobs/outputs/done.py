"""What an output has already: its units' files, what failed in them, and what is left to do.

Asked of listings and of the files' footers; contents are read only where a footer does not say it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardrank.actors.errors import (
    DocumentNotFound,
    DuplicateId,
    EmptyCandidates,
    NullId,
    QueryNotFound,
)
from shardrank.jobs.errors import UsageError, VerificationError
from shardrank.jobs.inputs.joins import NO_CANDIDATES
from shardrank.jobs.inputs.parquet import open_parquet
from shardrank.jobs.outputs.by_document import errors_by_document
from shardrank.jobs.outputs.files import BY_DOCUMENT, ID_ERRORS, Output, read_scores, whole
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.outputs.scores import UNIT_KEY
from shardrank.jobs.storage import Location, list_directory, read_bytes
from shardrank.jobs.units.documents import DocumentUnit, scorable
from shardrank.jobs.units.growth import Held
from shardrank.jobs.units.plan import PairsUnit, Plan, Unit, unit_digest, unit_name

_NUM_READERS = 16
ALL_ERRORS = "all"


@dataclass(frozen=True, slots=True)
class UnitFile:
    """One unit's file as its footer tells; `seconds` of preparing and scoring, if it was scored for
    this file alone. unit: the digest of what it was made of. place: of candidate sets the file,
    its first row and the one after the last.
    """

    name: str
    num_pairs: int
    errors: Mapping[str, int]
    seconds: float | None
    unit: str | None = None
    place: Sequence[int] | None = None

    @property
    def number(self) -> int:
        return int(self.name.rpartition("-")[2])


Known = dict[tuple[str, int | None, int | None], UnitFile]
"""Unit files that were read before, by path, size and time."""


def unit_files(directory: Location, known: Known | None = None) -> list[UnitFile]:
    """The unit files, read by their footers alone, but for those that are known; what is read is
    known then. Raises VerificationError that names one that is broken.
    """
    known = {} if known is None else known
    places = {
        (place.path, info.size, info.mtime_ns): place
        for place, info in list_directory(directory)
        if place.name.endswith(".parquet")
    }
    unread = {key: place for key, place in places.items() if key not in known}
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        known.update(zip(unread, pool.map(_unit_file, unread.values()), strict=True))
    return [known[key] for key in places]


def _unit_file(place: Location) -> UnitFile:
    with whole(place), open_parquet(place) as file:
        footer = file.metadata
    said = json.loads((footer.metadata or {}).get(UNIT_KEY, b"{}"))
    known = {name: said.get(name) for name in ("seconds", "unit", "place")}
    name = place.name.removesuffix(".parquet")
    return UnitFile(name, footer.num_rows, said.get("errors", {}), **known)


def has_failed(file: UnitFile, codes: Sequence[str]) -> bool:
    """Whether it has a row that failed of one of the codes, or of any where they say `all`."""
    return any(code in codes or ALL_ERRORS in codes for code in file.errors)


def check_strays(output: Output, plan: Plan) -> None:
    """Raises VerificationError for files among the score files that would be read with them."""
    strays = sorted(output.names(output.folder) - {output.file(unit).name for unit in plan.units})
    if strays:
        raise VerificationError(
            f"{output.results} has {len(strays)} files that are none of this job's, such "
            f"as {strays[0]}; move them away"
        )


def is_finished(manifest: Manifest, plan: Plan, retried: Sequence[str]) -> bool:
    """Whether there is nothing to score, nor to score again."""
    output = manifest.output
    if not manifest.is_finished or output.remaining(plan.units):
        return False
    files = unit_files(output.results) if retried else []
    return not any(has_failed(file, retried) for file in files)


@dataclass(frozen=True, slots=True)
class Remaining:
    """units: those without a score file, or with a row whose error is to be tried again. errors: of
    the rows that stay as they are, and of the pairs that ids alone keep from a score.

    needed: in document-major order, the units whose rows these are made of; documents: those of
    them that are to be scored.
    """

    units: list[Unit]
    errors: Counter[str]
    needed: Sequence[DocumentUnit] = ()
    documents: list[DocumentUnit] = field(default_factory=list)


def find_remaining(plan: Plan, output: Output, retried: Sequence[str]) -> Remaining:
    """retried: error codes, or `all`.

    Raises VerificationError for a file that is none of the job's, or cannot be read.
    """
    check_strays(output, plan)
    files = {file.name: file for file in unit_files(output.results)}
    found = Remaining([], Counter())
    for unit in plan.units:
        file = files.get(unit_name(unit))
        if file is None or has_failed(file, retried):
            found.units.append(_anew(plan, unit))
        elif plan.has_grown and file.unit != unit_digest(unit):
            found.units.append(unit)
            if isinstance(unit, PairsUnit) and unit.kept:
                found.errors.update(_kept_errors(output, unit, file))
        else:
            found.errors.update(file.errors)
    return found if plan.documents is None else _with_documents(plan, output, retried, found)


def _with_documents(
    plan: Plan, output: Output, retried: Sequence[str], found: Remaining
) -> Remaining:
    """What remains, with the errors of what no score file has, and their document-major units
    will give them.
    """
    assert plan.documents is not None
    if output.names("parts"):
        raise UsageError(
            f"{output.directory}/parts has documents that an earlier version scored: finish the "
            "job with that version, or delete the folder to score them again"
        )
    files = {file.name: file for file in unit_files(output.directory.child(BY_DOCUMENT))}
    found = replace(found, needed=plan.documents.units_with([u.index for u in found.units]))
    failed = []
    for unit in found.needed:
        file = files.get(unit_name(unit))
        if file is None or has_failed(file, retried):
            found.documents.append(unit)
        elif file.errors:
            failed.append(output.file(unit))
    found.errors.update(errors_by_document(failed, plan.documents, found.units))
    for pairs in found.units:
        if isinstance(pairs, PairsUnit):
            found.errors.update(id_errors(pairs.pairs()))
    return found


def _kept_errors(output: Output, unit: PairsUnit, file: UnitFile) -> Counter[str]:
    """The errors of the rows that the unit keeps: a row that its ids alone keep from a score is
    made anew, also where its query's own options failed it too.
    """
    errors = Counter({code: num for code, num in file.errors.items() if code not in ID_ERRORS})
    pairs = unit.pairs()
    if not errors or scorable(pairs).all():
        return errors
    ids = ["query_id", "doc_id"]
    kept = pairs.filter(pa.array(unit.is_kept())).select(ids).to_pylist()
    rows = read_scores(output.file(unit), [*ids, "error_code"]).to_pylist()
    codes = {(row["query_id"], row["doc_id"]): row["error_code"] for row in rows}
    found = Counter(codes.get((pair["query_id"], pair["doc_id"])) for pair in kept)
    return Counter({code: found[code] for code in errors})


def _anew(plan: Plan, unit: Unit) -> Unit:
    """The unit without what its earlier file has, which is to be scored again.

    Raises UsageError where the document-major units were planned for what is there.
    """
    if not isinstance(unit, PairsUnit) or not unit.kept:
        return unit
    if plan.documents is not None:
        raise UsageError(
            f"{unit_name(unit)}.parquet has rows to retry, and the job is adding to it: run its "
            "command without --retry-errors first"
        )
    return replace(unit, kept=b"")


def id_errors(pairs: pa.Table) -> Counter[str]:
    """The errors of whole queries' pairs that are in no document-major unit, as reading.py has them
    where the query's own options are right.
    """
    wrong = pairs.filter(pa.array(~scorable(pairs)))
    codes = np.select(
        [
            ~wrong["query_id"].is_valid().to_numpy(),
            wrong["query_file"].to_numpy() < 0,
            wrong["doc_file"].to_numpy() == NO_CANDIDATES,
            ~wrong["doc_id"].is_valid().to_numpy(),
            wrong["doc_file"].to_numpy() < 0,
        ],
        [NullId.code, QueryNotFound.code, EmptyCandidates.code, NullId.code, DocumentNotFound.code],
        DuplicateId.code,
    )
    return Counter(codes.tolist())


def read_held(output: Output, manifest: Manifest | None) -> Held | None:
    """What the output had when its input last grew; None for one that never did.

    A unit whose file is gone since has no scores to keep.
    """
    growth = manifest and manifest.growth
    if not growth:
        return None
    table = pq.read_table(pa.BufferReader(read_bytes(output.directory.child(growth.record))))
    if growth.is_open and "is_scored" in table.schema.names:
        numbers = (name.removesuffix(".parquet")[-6:] for name in output.names(output.folder))
        there = [int(number) for number in numbers if number.isdecimal()]
        is_there = pc.is_in(table["unit"], value_set=pa.array(there, pa.int32()))
        column = table.schema.get_field_index("is_scored")
        is_scored = pc.and_(table["is_scored"], is_there)
        table = table.set_column(column, "is_scored", is_scored)
    return Held(table, growth.is_open)
