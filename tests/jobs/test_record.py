"""What a run notes, and that it notes nothing in the manifest of a run that took its place."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shardrank.jobs.errors import JobError, TooManyErrors
from shardrank.jobs.outputs.budget import Budget, MaxErrors
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.outputs.lease import LEASE
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.rerank import hold
from shardrank.jobs.run.execution import Run
from shardrank.jobs.storage import Location


def begun(folder: Path, **more: Any) -> Manifest:
    return Manifest(Output(Location.parse(str(folder / "out"))), {}, {}, **more)


def test_a_run_that_lost_its_lease_leaves_the_next_ones_manifest_alone(tmp_path: Path) -> None:
    output = Output(Location.parse(str(tmp_path / "out")))
    with (
        pytest.raises(JobError, match="another run has taken over"),
        hold(output) as check_lease,
        (manifest := begun(tmp_path, guard=check_lease)).timed(),
    ):
        # It is suspended; another one finds it dead, finishes and leaves. Then it wakes up.
        (tmp_path / "out" / LEASE).unlink()
        begun(tmp_path, status="finished", seconds=9.0).save()
        manifest.save()
    kept = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (kept["status"], kept["seconds"]) == ("finished", 9.0)


def test_the_errors_of_what_is_written_are_noted_also_when_they_are_too_many(
    tmp_path: Path,
) -> None:
    manifest = begun(tmp_path)
    budget = Budget(MaxErrors.parse("2"), 10, Counter(crashed=1))
    unused: Any = None
    run = Run(unused, unused, unused, manifest, budget, unused, lambda: None)
    codes, sentences = [None, "crashed", "image_decode"], [None, "it died", "it is torn"]
    with (
        pytest.raises(TooManyErrors, match="3 of 10 pairs .*; one says: it died"),
        manifest.timed(),
    ):
        run.written(pa.table({"error_code": codes, "error": sentences}))
    assert manifest.errors == {"crashed": 2, "image_decode": 1}
    kept = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert kept == manifest.values()
