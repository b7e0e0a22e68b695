"""manifest.json: which job an output directory belongs to, and what the job did so far."""

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from typing import Any, Literal

from shardrank.actors.config import RerankerConfig
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.budget import Budget
from shardrank.jobs.outputs.files import EMBEDDINGS, MANIFEST, SUCCESS, Output
from shardrank.jobs.outputs.input_files import Job
from shardrank.jobs.outputs.job import as_kept, check_same_job, kept_command, kept_input
from shardrank.jobs.storage import (
    delete_file,
    list_directory,
    read_bytes,
    write_atomically,
)

_PACKAGES = ("shardrank", "torch", "transformers", "tokenizers", "ray", "pyarrow", "pillow", "av")
_SAVE_EVERY_S = 30.0

Check = Callable[[], None]
"""Raises what ends the run."""


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": sys.platform}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True, slots=True)
class Counts:
    """What the rows add up to; unit_hashes: of the rows of each unit, by its name."""

    num_queries: int = 0
    num_pairs: int = 0
    num_failed: int = 0
    num_truncated: int = 0
    num_tokens: int = 0
    num_visual_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    unit_hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def total(cls, parts: Iterable["Counts"]) -> "Counts":
        parts, errors = list(parts), Counter[str]()
        for part in parts:
            errors.update(part.errors)
        hashes = sorted(pair for part in parts for pair in part.unit_hashes.items())
        sums = {name: sum(getattr(part, name) for part in parts) for name in _SUMMED}
        return cls(**sums, errors=dict(errors.most_common()), unit_hashes=dict(hashes))


_SUMMED = [each.name for each in fields(Counts) if each.name.startswith("num_")]


@dataclass(slots=True)
class Growth:
    """How the input grew: `record` names what the output had before, `num` counts how often.

    is_open: until all that is new has its rows. lacks_trec_run: there was a run.trec, and there is
    none of the grown input yet.
    """

    record: str
    num: int
    is_open: bool = True
    lacks_trec_run: bool | None = None


@dataclass(slots=True)
class Manifest:
    """What manifest.json says; a value that is None is not in it.

    `guard` is asked before anything is written: it raises JobError where the output is another
    run's by now.
    """

    output: Output
    job: Job
    model: dict[str, Any]
    guard: Check = lambda: None
    status: Literal["running", "finished"] = "running"
    versions: dict[str, str] = field(default_factory=_versions)
    started: str = field(default_factory=_now)
    seconds: float = 0.0
    num_runs: int = 0
    updated: str | None = None
    dtype: str | None = None
    input: dict[str, Any] | None = None
    command: dict[str, Any] | None = None
    num_actors: int | None = None
    max_errors: int | None = None
    errors: dict[str, int] | None = None
    num_visuals_encoded: int | None = None
    vision_cache_hits: int | None = None
    vision_cache_hit_rate: float | None = None
    counts: Counts | None = None
    pairs_per_s: float | None = None
    tokens_per_s: float | None = None
    gpu_hour_price: float | None = None
    cost: float | None = None
    measures: dict[str, float] | None = None
    growth: Growth | None = None
    others: dict[str, Any] = field(default_factory=dict)
    _begun: float | None = None
    _saved: float = 0.0

    @classmethod
    def read(cls, output: Output) -> "Manifest | None":
        """None for a new directory. Raises UsageError for one that holds something else."""
        place = output.directory.child(MANIFEST)
        if not place.exists():
            if list_directory(output.directory):
                raise UsageError(
                    f"--output {output.directory} is not empty and has no {MANIFEST}: "
                    "it is not the output of a job; name an empty or a new directory"
                )
            return None
        try:
            return cls._of(output, json.loads(read_bytes(place)))
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{place} is not a manifest: {error}") from error

    @classmethod
    def _of(cls, output: Output, values: dict[str, Any]) -> "Manifest":
        known = {name: values.pop(name) for name in _PLAIN if name in values}
        found = {name: values.pop(name) for name in _COUNTED if name in values}
        if found:
            known["counts"] = Counts(**found, errors=known.get("errors", {}))
        if "growth" in values:
            known["growth"] = Growth(**values.pop("growth"))
        manifest = cls(output, **known, others=values)
        if manifest.job.get("form") == "texts":
            manifest.output = replace(output, folder=EMBEDDINGS)
        return manifest

    @classmethod
    def held(cls, output: Output, job: Job, config: RerankerConfig, guard: Check) -> "Manifest":
        """The directory's, perhaps of a run that began while this one planned or waited; else a new
        one, saved at once: whoever comes next sees which job this is.
        """
        manifest = cls.read(output)
        if manifest is not None:
            check_same_job(output.directory, manifest.job, job)
            manifest.guard = guard
            return manifest
        checkpoint = {"name": config.model, "revision": config.revision}
        checkpoint |= {} if config.adapter is None else {"adapter": config.adapter}
        manifest = cls(output, as_kept(job), checkpoint, guard)
        manifest.save()
        return manifest

    def values(self) -> dict[str, Any]:
        """What the file says."""
        kept = {name: getattr(self, name) for name in _PLAIN}
        if self.counts is not None:
            hashes = self.counts.unit_hashes or None
            kept |= asdict(self.counts) | {"errors": self.errors, "unit_hashes": hashes}
        if self.growth is not None:
            kept["growth"] = _said(asdict(self.growth))
        return _said(kept) | self.others

    def save(self) -> None:
        self.guard()
        if self._begun is not None:
            self.seconds = round(time.monotonic() - self._begun, 3)
        self._saved, self.updated = time.monotonic(), _now()
        text = json.dumps(self.values(), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.output.directory.child(MANIFEST), text.encode())

    @property
    def is_finished(self) -> bool:
        """Whether its last run finished it; score files may have been deleted since."""
        return self.status == "finished" and self.output.directory.child(SUCCESS).exists()

    @property
    def lacks_trec_run(self) -> bool:
        return self.growth is not None and bool(self.growth.lacks_trec_run)

    def settle_dtype(self, dtype: str) -> None:
        """Raises UsageError if an earlier run scored in another one: `auto` goes by the device."""
        self.dtype = self.dtype or dtype
        if self.dtype != dtype:
            raise UsageError(
                f"--output {self.output.directory} was scored in {self.dtype} so far, and --dtype "
                f"auto means {dtype} on this device; go on with the --device that it had, or in "
                "another directory"
            )

    def begin(
        self, options: InputOptions, command: Sequence[str], num_actors: int, budget: Budget
    ) -> None:
        """Nothing can refuse the command any more: the job is no longer finished, if it was."""
        self.guard()
        delete_file(self.output.directory.child(SUCCESS))
        self.output.remove_leftovers()
        self.status, self.measures = "running", None
        if self.counts is not None:
            self.counts = replace(self.counts, unit_hashes={})
        self.num_runs += 1
        self.input = kept_input(options)
        if command:
            self.command = kept_command(command)
        self.num_actors, self.max_errors = num_actors, budget.limit
        self.note_errors(budget)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add what this takes to `seconds`, in the file at once, now and then, and at its end."""
        self._begun = time.monotonic() - self.seconds
        self.save()
        try:
            yield
        except BaseException:
            with suppress(OSError, JobError):  # what went wrong first is what counts
                self.save()
            raise
        self.save()
        self._begun = None

    def progress(self) -> None:
        if time.monotonic() - self._saved >= _SAVE_EVERY_S:
            self.save()

    def note_trec_run(self) -> None:
        """run.trec is written, and of the whole input."""
        if self.growth is not None and self.growth.lacks_trec_run:
            self.growth.lacks_trec_run = None
            self.save()

    def note_measures(self, measures: dict[str, float]) -> None:
        if measures:
            self.measures = measures
            self.save()

    def note_errors(self, budget: Budget) -> None:
        self.errors = dict(budget.errors.most_common())

    def add_lookups(self, hits: int, misses: int) -> None:
        """Count the vision cache's lookups, over all runs of the job; a miss is a visual encoded.

        What a run that was killed looked up since it last saved this is not in it.
        """
        self.vision_cache_hits = hits = hits + (self.vision_cache_hits or 0)
        self.num_visuals_encoded = misses = misses + (self.num_visuals_encoded or 0)
        if hits + misses:
            self.vision_cache_hit_rate = round(hits / (hits + misses), 6)

    def finish(self, counts: Counts, num_gpus: float, gpu_hour_price: float | None) -> None:
        seconds = max(self.seconds, 1e-9)
        self.counts, self.errors = counts, counts.errors
        self.pairs_per_s = round(counts.num_pairs / seconds, 3)
        self.tokens_per_s = round(counts.num_tokens / seconds, 1)
        if gpu_hour_price is not None:
            self.gpu_hour_price = gpu_hour_price
            self.cost = round(seconds / 3600 * num_gpus * gpu_hour_price, 6)
        self.status = "finished"
        if self.growth is not None:
            self.growth.is_open = False
        self.save()
        write_atomically(self.output.directory.child(SUCCESS), b"")


_PLAIN = [
    each.name
    for each in fields(Manifest)
    if each.name not in ("output", "guard", "counts", "growth", "others", "_begun", "_saved")
]
_COUNTED = [*_SUMMED, "unit_hashes"]


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
