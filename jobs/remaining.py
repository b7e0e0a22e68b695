"""What is left of a job for a run to do, by what its output directory holds as the run begins."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shardrank.actors.errors import DocumentNotFound, DuplicateId, NullId, QueryNotFound
from shardrank.jobs.outputs.files import PARTS, SCORES, Output
from shardrank.jobs.outputs.parts import errors_in_parts
from shardrank.jobs.outputs.status import UnitFile, unit_files
from shardrank.jobs.outputs.verify import check_strays
from shardrank.jobs.units.documents import DocumentPlan, scorable
from shardrank.jobs.units.plan import PairsUnit, Plan, Unit, unit_name

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
    files = unit_files(output.directory.child(SCORES))
    kept = {file.name: file for file in files if not has_failed(file, retried)}
    units = [unit for unit in plan.units if unit_name(unit) not in kept]
    errors: Counter[str] = Counter()
    for file in kept.values():
        errors.update(file.errors)
    if plan.documents is None:
        return Remaining(units, frozenset(), errors)
    parts = unit_files(output.directory.child(PARTS))
    stale = frozenset(part.name for part in parts if has_failed(part, retried))
    failed = {part.name for part in parts if part.errors} - stale
    errors.update(_errors_by_document(plan.documents, units, output, failed))
    return Remaining(units, stale, errors)


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
            ~wrong["doc_id"].is_valid().to_numpy(),
            wrong["doc_file"].to_numpy() < 0,
        ],
        [NullId.code, QueryNotFound.code, NullId.code, DocumentNotFound.code],
        DuplicateId.code,
    )
    return Counter(codes.tolist())
