"""What a job did so far, whatever became of it, as its output directory has it."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shardrank.jobs.errors import UsageError, Way
from shardrank.jobs.outputs.budget import ways_beyond
from shardrank.jobs.outputs.done import Known, UnitFile, unit_files
from shardrank.jobs.outputs.files import BY_DOCUMENT, Output
from shardrank.jobs.outputs.lease import EXPIRES_S, LEASE, holder_of, is_known_dead
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.storage import Location

State = Literal["finished", "running", "stopped"]

NUM_SLOWEST = 5


@dataclass(frozen=True, slots=True)
class Status:
    """`by_document`: the document-major units that are scored, while they wait to be regrouped.

    `lease_age_s`: since the holder last said that it lives, by this clock and the storage's.
    """

    output: str
    state: State
    manifest: Manifest
    holder: Mapping[str, Any] | None
    lease_age_s: float | None
    num_units: int
    units: Sequence[UnitFile]
    by_document: Sequence[UnitFile]

    @property
    def num_pairs(self) -> int:
        return sum(unit.num_pairs for unit in self.units)

    @property
    def errors(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for unit in self.units or self.by_document:
            total.update(unit.errors)
        return dict(total.most_common())

    @property
    def slowest(self) -> list[UnitFile]:
        timed = [unit for unit in (*self.units, *self.by_document) if unit.seconds is not None]
        return sorted(timed, key=lambda unit: -(unit.seconds or 0))[:NUM_SLOWEST]

    @property
    def is_silent(self) -> bool:
        """Running, and probably dead: elsewhere, so that only the next run can find out."""
        return self.state == "running" and (self.lease_age_s or 0) > EXPIRES_S

    @property
    def ways(self) -> Sequence[Way]:
        """What must change in the command, where it had too many errors."""
        limit = math.inf if self.manifest.max_errors is None else self.manifest.max_errors
        return ways_beyond(self.errors) if sum(self.errors.values()) > limit else ()

    @property
    def command(self) -> tuple[str, Sequence[str]] | None:
        """(working directory, arguments) of the last run, if it was a command."""
        kept = self.manifest.command
        return (kept["directory"], kept["arguments"]) if kept else None


def read_status(output: str, known: Known | None = None) -> Status:
    """Raises UsageError for what is not a job's output. known: see unit_files.

    The holder is asked for first: one that ends meanwhile has said before what became of the job.
    """
    directory = Location.parse(output)
    holder = holder_of(directory)
    is_held = holder is not None and not is_known_dead(holder)
    manifest = Manifest.read(Output(directory))
    if manifest is None:
        raise UsageError(f"{directory} is not the output of a job: it has no manifest.json")
    units = unit_files(manifest.output.results, known)
    num_units = manifest.job["num_units"]
    state: State = "stopped"
    if manifest.is_finished and len(units) >= num_units:
        state = "finished"
    elif is_held:
        state = "running"
    return Status(
        str(directory),
        state,
        manifest,
        holder,
        _age_s(directory.child(LEASE)),
        num_units,
        units,
        unit_files(directory.child(BY_DOCUMENT), known),
    )


def _age_s(place: Location) -> float | None:
    changed = place.info().mtime_ns
    return None if changed is None else time.time() - changed / 1e9
