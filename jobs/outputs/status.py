"""What a job did so far, whatever became of it, and what is left of it for a run to do: both as the
output directory has them.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from shardrank.actors.errors import (
    DocumentNotFound,
    DuplicateId,
    EmptyCandidates,
    NullId,
    QueryNotFound,
)
from shardrank.jobs.errors import UnreadableInput, UsageError, Way
from shardrank.jobs.inputs.joins import NO_CANDIDATES
from shardrank.jobs.inputs.parquet import open_parquet
from shardrank.jobs.outputs.budget import ways_beyond
from shardrank.jobs.outputs.files import (
    ID_ERRORS,
    PARTS,
    SCORES,
    SUCCESS,
    Output,
    read_scores,
)
from shardrank.jobs.outputs.lease import EXPIRES_S, LEASE, holder_of, is_known_dead
from shardrank.jobs.outputs.manifest import Manifest, read_manifest
from shardrank.jobs.outputs.parts import errors_in_parts
from shardrank.jobs.outputs.scores import UNIT_KEY
from shardrank.jobs.outputs.verify import check_strays
from shardrank.jobs.storage import Location, comes_from_storage, list_directory
from shardrank.jobs.units.documents import DocumentPlan, scorable
from shardrank.jobs.units.plan import PairsUnit, Plan, Unit, unit_digest, unit_name

State = Literal["finished", "running", "stopped"]

_NUM_READERS = 16
NUM_SLOWEST = 5


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


@dataclass(frozen=True, slots=True)
class Status:
    """`parts`: the document-major units that are scored, while they wait to be regrouped.

    `lease_age_s`: since the holder last said that it lives, by this clock and the storage's.
    """

    output: str
    state: State
    manifest: Manifest
    holder: Mapping[str, Any] | None
    lease_age_s: float | None
    num_units: int
    units: Sequence[UnitFile]
    parts: Sequence[UnitFile]

    @property
    def num_pairs(self) -> int:
        return sum(unit.num_pairs for unit in self.units)

    @property
    def errors(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for unit in self.units or self.parts:
            total.update(unit.errors)
        return dict(total.most_common())

    @property
    def slowest(self) -> list[UnitFile]:
        timed = [unit for unit in (*self.units, *self.parts) if unit.seconds is not None]
        return sorted(timed, key=lambda unit: -(unit.seconds or 0))[:NUM_SLOWEST]

    @property
    def is_silent(self) -> bool:
        """Running, and probably dead: elsewhere, so that only the next run can find out."""
        return self.state == "running" and (self.lease_age_s or 0) > EXPIRES_S

    @property
    def ways(self) -> Sequence[Way]:
        """What must change in the command, where it had too many errors."""
        limit = self.manifest.get("max_errors", math.inf)
        return ways_beyond(self.errors) if sum(self.errors.values()) > limit else ()

    @property
    def command(self) -> tuple[str, Sequence[str]] | None:
        """(working directory, arguments) of the last run, if it was a command."""
        kept = self.manifest.get("command")
        return (kept["directory"], kept["arguments"]) if kept else None


def read_status(output: str) -> Status:
    """Raises UsageError for what is not a job's output."""
    directory = Location.parse(output)
    kept = Output(directory)
    manifest = read_manifest(kept)
    if manifest is None:
        raise UsageError(f"{directory} is not the output of a job: it has no manifest.json")
    units = unit_files(directory.child(SCORES))
    num_units = manifest["job"]["num_units"]
    holder = holder_of(directory)
    state: State = "stopped"
    if is_marked_finished(kept, manifest) and len(units) >= num_units:
        state = "finished"
    elif holder is not None and not is_known_dead(holder):
        state = "running"
    return Status(
        str(directory),
        state,
        manifest,
        holder,
        _age_s(directory.child(LEASE)),
        num_units,
        units,
        unit_files(directory.child(PARTS)),
    )


def is_marked_finished(output: Output, manifest: Manifest) -> bool:
    """As its last run left it; score files may have been deleted since."""
    return manifest["status"] == "finished" and output.directory.child(SUCCESS).exists()


def _age_s(place: Location) -> float | None:
    changed = place.info().mtime_ns
    return None if changed is None else time.time() - changed / 1e9


def unit_files(directory: Location) -> list[UnitFile]:
    """By their footers alone. Raises UsageError that names one that is broken."""
    places = [place for place, _ in list_directory(directory) if place.name.endswith(".parquet")]
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return list(pool.map(_unit_file, places))


def _unit_file(place: Location) -> UnitFile:
    """Raises UsageError for a file that is no score file, UnreadableInput for a storage's fault."""
    try:
        with open_parquet(place) as file:
            footer = file.metadata
    except UnreadableInput as error:
        if comes_from_storage(error.__cause__):
            raise
        raise UsageError(f"{error}; delete it and run the job's command again") from error
    summary = json.loads((footer.metadata or {}).get(UNIT_KEY, b"{}"))
    name = place.name.removesuffix(".parquet")
    return UnitFile(
        name,
        footer.num_rows,
        summary.get("errors", {}),
        summary.get("seconds"),
        summary.get("unit"),
        summary.get("place"),
    )


ALL_ERRORS = "all"


@dataclass(frozen=True, slots=True)
class Remaining:
    """units: those without a score file, or with a row whose error is to be tried again.
    stale_parts: the parts with such a row, by name.
    errors: of the rows that stay as they are, and of the pairs that ids alone keep from a score.
    """

    units: list[Unit]
    stale_parts: frozenset[str]
    errors: Counter[str]


def find_remaining(plan: Plan, output: Output, retried: Sequence[str]) -> Remaining:
    """retried: error codes, or `all`.

    Raises VerificationError for a file that is none of the job's, UsageError for one that cannot be
    read.
    """
    check_strays(output, plan)
    files = {file.name: file for file in unit_files(output.directory.child(SCORES))}
    errors: Counter[str] = Counter()
    units: list[Unit] = []
    for unit in plan.units:
        file = files.get(unit_name(unit))
        if file is None or has_failed(file, retried):
            units.append(_anew(plan, unit))
        elif plan.has_grown and file.unit != unit_digest(unit):
            units.append(unit)
            if isinstance(unit, PairsUnit) and unit.kept:
                errors.update(_kept_errors(output, unit, file))
        else:
            errors.update(file.errors)
    if plan.documents is None:
        return Remaining(units, frozenset(), errors)
    parts = unit_files(output.directory.child(PARTS))
    stale = frozenset(part.name for part in parts if has_failed(part, retried))
    failed = {part.name for part in parts if part.errors} - stale
    errors.update(_errors_by_document(plan.documents, units, output, failed))
    return Remaining(units, stale, errors)


def _kept_errors(output: Output, unit: PairsUnit, file: UnitFile) -> Counter[str]:
    """Of the rows that the unit keeps: a row that its ids alone keep from a score is made anew,
    also where its query's own options failed it too.
    """
    errors = Counter({code: num for code, num in file.errors.items() if code not in ID_ERRORS})
    pairs = unit.pairs()
    if not errors or scorable(pairs).all():
        return errors
    ids = ["query_id", "doc_id"]
    kept = pairs.filter(pa.array(unit.is_kept())).select(ids).to_pylist()
    rows = read_scores(output.scores_file(unit), [*ids, "error_code"]).to_pylist()
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


def has_failed(file: UnitFile, codes: Sequence[str]) -> bool:
    """Whether it has a row that failed of one of the codes."""
    return any(code in codes or ALL_ERRORS in codes for code in file.errors)


def _errors_by_document(
    documents: DocumentPlan, units: Sequence[Unit], output: Output, failed: set[str]
) -> Counter[str]:
    """Of what the parts, and no score file, will give these units; failed: the parts with errors"""
    parts = [output.part_file(unit) for unit in documents.units if unit_name(unit) in failed]
    errors = errors_in_parts(parts, documents, units)
    for unit in units:
        if isinstance(unit, PairsUnit):
            errors.update(id_errors(unit.pairs()))
    return errors


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
