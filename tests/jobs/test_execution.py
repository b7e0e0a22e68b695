from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shardrank.jobs.errors import JobError
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.run.execution import _Writer
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
