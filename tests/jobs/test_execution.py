import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shardrank.jobs.errors import JobError
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.run.execution import _journal, _Writer
from shardrank.jobs.storage import Location
from shardrank.jobs.units.plan import SetsUnit


def test_an_output_that_the_nodes_do_not_share_is_known_at_the_first_file(
    tmp_path: Path, ray_address: str
) -> None:
    def elsewhere(output: Output, job_input: Any, unit: SetsUnit, rows: pa.Table) -> None: ...

    writer = _Writer(elsewhere, Output(Location("", str(tmp_path / "out"))), None)
    with pytest.raises(JobError, match="part-000003.parquet was written on another node"):
        writer.write(SetsUnit(3, 0, 0, 1, 1), pa.table({}))
        writer.wait(0)


def test_a_journal_is_its_owners_alone_and_those_of_killed_jobs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # to be looked up again
    killed = "from shardrank.jobs.run.execution import _journal\nimport os, signal\n"
    killed += "with _journal() as path: os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -9
    (left,) = tmp_path.glob("*/*")
    with _journal() as first, _journal() as second:
        assert not left.exists() and first != second
        assert set(tmp_path.glob("*/*")) == {Path(first), Path(second)}
        for path in (Path(first), Path(first).parent):
            assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0
    assert list(tmp_path.glob("*/*")) == []
