"""One local Ray for all tests that need one: starting it takes far longer than a test."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# The same examples each time, so that a change is not blamed for what it did not do; others are
# drawn with `pytest --hypothesis-profile=anew`. No deadlines: machines are busy.
settings.register_profile("settled", deadline=None, derandomize=True)
settings.register_profile("anew", deadline=None)
settings.load_profile("settled")

# Ray's workers have the environment in which it was started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name != "faults")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side (`pytest -n 2`) the tests of a file stay together. Those of tests/faults time
    out beside each other on few cores: they begin first and follow each other in one process, while
    the other one does everything else.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FilesTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/faults" if nodeid.startswith("tests/faults/") else nodeid.split("::")[0]

    config.option.loadscopereorder = False
    return FilesTogether(config, log)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3-protocol server on loopback that has a bucket `bucket`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
        Bucket="bucket"
    )
    yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """Its address; this process is joined to it already."""
    import ray

    from tests.support import standin

    ray.cloudpickle.register_pickle_by_value(standin)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as path:
        started = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            _temp_dir=path,
        )
        yield started.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's workers are this process, one after the other."""
    from tests.support import job_cases

    job_cases.workers_here(monkeypatch)
