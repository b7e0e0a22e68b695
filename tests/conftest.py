"""One local Ray for all tests that need one: starting it takes far longer than a test."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Its address; this process is joined to it already."""
    import ray
    import standin

    ray.cloudpickle.register_pickle_by_value(standin)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as path:
        started = ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            _temp_dir=path,
        )
        yield started.address_info["gcs_address"]
        ray.shutdown()
