"""What a run notes, and that it notes nothing in the manifest of a run that took its place."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from shardrank.jobs.errors import JobError, TooManyErrors
from shardrank.jobs.outputs.budget import Budget, MaxErrors
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.outputs.lease import LEASE
from shardrank.jobs.outputs.manifest import Manifest, save_manifest
from shardrank.jobs.outputs.record import Record, timed
from shardrank.jobs.rerank import _held
from shardrank.jobs.storage import Location


def begun() -> Manifest:
    return {"status": "running", "seconds": 0.0}


def test_a_run_that_lost_its_lease_leaves_the_next_ones_manifest_alone(tmp_path: Path) -> None:
    output = Output(Location.parse(str(tmp_path / "out")))
    with (
        pytest.raises(JobError, match="another run has taken over"),
        _held(output) as check_lease,
        timed(output, begun(), check_lease) as clock,
    ):
        # It is suspended; another one finds it dead, finishes and leaves. Then it wakes up.
        (tmp_path / "out" / LEASE).unlink()
        save_manifest(output, begun() | {"status": "finished", "seconds": 9.0})
        clock.save()
    kept = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (kept["status"], kept["seconds"]) == ("finished", 9.0)


def test_the_errors_of_what_is_written_are_noted_also_when_they_are_too_many(
    tmp_path: Path,
) -> None:
    output, manifest = Output(Location.parse(str(tmp_path / "out"))), begun()
    budget = Budget(MaxErrors.parse("2"), 10, Counter(crashed=1))
    with (
        pytest.raises(TooManyErrors, match="3 of 10 pairs .*; one says: it died"),
        timed(output, manifest, lambda: None) as clock,
    ):
        record = Record(manifest, budget, clock, lambda: None)
        codes, sentences = [None, "crashed", "image_decode"], [None, "it died", "it is torn"]
        record.written(pa.table({"error_code": codes, "error": sentences}))
    assert manifest["errors"] == {"crashed": 2, "image_decode": 1}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
