"""What a run notes in the manifest while it goes on: its time, errors and cache lookups."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from shardrank.jobs.errors import JobError
from shardrank.jobs.outputs.budget import Budget
from shardrank.jobs.outputs.files import SUCCESS, Output
from shardrank.jobs.outputs.manifest import Manifest, add_lookups, save_manifest
from shardrank.jobs.outputs.scores import lookups_of
from shardrank.jobs.storage import write_atomically
from shardrank.jobs.units.plan import KEPT

_SAVE_EVERY_S = 30.0

Check = Callable[[], None]
"""Raises what ends the run."""


class Clock:
    """Adds this run's seconds to the manifest, now and then also in its file."""

    def __init__(self, output: Output, manifest: Manifest, check_lease: Check) -> None:
        self._output = output
        self._manifest = manifest
        self._check_lease = check_lease
        self._before = manifest["seconds"]
        self._started = self._saved = time.monotonic()

    def save(self) -> None:
        """Raises JobError where the file is another run's by now."""
        self._check_lease()
        self._saved = time.monotonic()
        self._manifest["seconds"] = round(self._before + self._saved - self._started, 3)
        save_manifest(self._output, self._manifest)

    def tick(self) -> None:
        if time.monotonic() - self._saved >= _SAVE_EVERY_S:
            self.save()


class Record:
    """What happens in a run, as far as the manifest has it; execution.py's Watcher."""

    def __init__(
        self, manifest: Manifest, budget: Budget, clock: Clock, check_interruption: Check
    ) -> None:
        self._manifest = manifest
        self._budget = budget
        self._clock = clock
        self._check_interruption = check_interruption

    def tick(self) -> None:
        self._check_interruption()
        self._clock.tick()

    def scored(self, rows: Any) -> None:
        lookups = lookups_of(rows)
        if lookups is not None:
            add_lookups(self._manifest, *lookups)

    def written(self, rows: Any) -> None:
        codes = Counter(rows["error_code"].to_pylist())
        codes.pop(None, None)
        codes.pop(KEPT, None)  # counted as the run began
        try:
            self._budget.add(codes, rows["error"].drop_null().to_pylist())
        finally:
            self._manifest["errors"] = dict(self._budget.errors.most_common())


@contextmanager
def timed(output: Output, manifest: Manifest, check_lease: Check) -> Iterator[Clock]:
    clock = Clock(output, manifest, check_lease)
    clock.save()
    try:
        yield clock
    except BaseException:
        with suppress(OSError, JobError):  # what went wrong first is what counts
            clock.save()
        raise
    clock.save()


def add_rates(manifest: Manifest, num_gpus: int, gpu_hour_price: float | None) -> None:
    seconds = max(manifest["seconds"], 1e-9)
    manifest["pairs_per_s"] = round(manifest["num_pairs"] / seconds, 3)
    manifest["tokens_per_s"] = round(manifest["num_tokens"] / seconds, 1)
    if gpu_hour_price is not None:
        manifest["gpu_hour_price"] = gpu_hour_price
        manifest["cost"] = round(seconds / 3600 * num_gpus * gpu_hour_price, 6)


def finish(output: Output, manifest: Manifest) -> None:
    manifest["status"] = "finished"
    if "growth" in manifest:
        manifest["growth"]["is_open"] = False
    save_manifest(output, manifest)
    write_atomically(output.directory.child(SUCCESS), b"")
