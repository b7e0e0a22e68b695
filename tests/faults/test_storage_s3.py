"""Locations on an S3-protocol server that fails some of the requests: nothing of it is seen."""

import _thread
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from shardrank.actors.errors import MediaNotFound, MediaUnreachable
from shardrank.actors.fetch import object_store
from shardrank.actors.fetch.reader import MediaReader
from shardrank.jobs.errors import JobError, UsageError, VerificationError
from shardrank.jobs.inputs.parquet import read_range
from shardrank.jobs.outputs.by_document import _read_row_group
from shardrank.jobs.outputs.done import unit_files
from shardrank.jobs.outputs.files import BY_DOCUMENT, SCORES, Output, write_trec_run
from shardrank.jobs.outputs.verify import verify_units
from shardrank.jobs.storage import (
    Location,
    NoSuchFile,
    StorageError,
    delete_file,
    list_files,
    read_bytes,
    remove_directory,
    write_atomically,
    write_stream,
)
from shardrank.jobs.units.plan import Plan
from tests.faults.fault_proxy import (
    BROKEN_OFF,
    DONE_AND_DROPPED,
    DROPPED,
    INTERNAL_ERROR,
    SLOW_DOWN,
    TOO_MANY,
    Fault,
    FaultProxy,
    Request,
    faulty,
    first,
)
from tests.support.job_cases import plan_of, run_inline, text_rows, write_sets

CONTENT = bytes(range(256)) * 1_000
LARGE = CONTENT * 60  # two parts of an upload
DENIED = Fault("status", 403, "AccessDenied")
PASSING = {
    "503": SLOW_DOWN,
    "500": INTERNAL_ERROR,
    "429": TOO_MANY,
    "502": Fault("status", 502, "BadGateway"),
    "504": Fault("status", 504, "GatewayTimeout"),
    "dropped": DROPPED,
    "done and dropped": DONE_AND_DROPPED,
    "broken off": BROKEN_OFF,
}


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with faulty(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def place(proxy: FaultProxy) -> Location:
    """A directory with the file `there`, behind the proxy."""
    directory = Location.parse(f"s3://bucket/faults{proxy.query}")
    remove_directory(directory)
    write_atomically(directory.child("there"), CONTENT)
    proxy.requests.clear()
    return directory


def list_names(place: Location) -> list[str]:
    return [found.name for found, _ in list_files(place)]


def written(place: Location, content: bytes) -> bytes:
    write_atomically(place.child("new"), content)
    return read_bytes(place.child("new"))


def gone(place: Location, delete: Callable[[Location], None], name: str) -> bool:
    delete(place.child(name) if name else place)
    return place.child("there").exists()


OPERATIONS: dict[str, tuple[str, Callable[[Location], Any], Any]] = {
    "look": ("HEAD", lambda place: place.child("there").info().size, len(CONTENT)),
    "list": ("GET", list_names, ["there"]),
    "open": ("HEAD", lambda place: read_bytes(place.child("there")), CONTENT),
    "read": ("GET", lambda place: read_bytes(place.child("there")), CONTENT),
    "write": ("PUT", lambda place: written(place, CONTENT), CONTENT),
    "begin a large write": ("POST", lambda place: written(place, LARGE), LARGE),
    "write a part": ("PUT", lambda place: written(place, LARGE), LARGE),
    "delete": ("DELETE", lambda place: gone(place, delete_file, "there"), False),
    "delete all": ("POST", lambda place: gone(place, remove_directory, ""), False),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_not_seen(
    proxy: FaultProxy, place: Location, fault: str, operation: str
) -> None:
    method, call, expected = OPERATIONS[operation]
    proxy.faults = first(1, PASSING[fault], method)
    assert call(place) == expected
    assert proxy.num_failed == 1


@pytest.mark.parametrize("operation", ["look", "list", "read", "delete"])
def test_an_answer_that_does_not_come_is_asked_for_again(
    proxy: FaultProxy, place: Location, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 1.0)
    object_store._filesystem.cache_clear()
    method, call, expected = OPERATIONS[operation]
    proxy.faults = first(1, Fault("late", seconds=5), method)
    assert call(place) == expected
    methods = [request.method for request in proxy.requests]
    assert methods.count(method) >= 2


def test_an_outage_longer_than_the_sdk_is_patient_is_waited_for(
    proxy: FaultProxy, place: Location
) -> None:
    num_failures = 3 * (object_store.SDK_RETRIES + 1)
    proxy.faults = first(num_failures, SLOW_DOWN, "GET")
    assert read_bytes(place.child("there")) == CONTENT
    assert proxy.num_failed == num_failures


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_does_not_pass_fails_in_the_end_by_name(
    proxy: FaultProxy, place: Location, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.0)
    method, call, _ = OPERATIONS[operation]
    proxy.faults = lambda request: SLOW_DOWN if request.method == method else None
    sentence = "^s3://bucket/faults.* cannot be .*(503|SLOW_DOWN|UNAVAIL)"
    with pytest.raises(StorageError, match=sentence):
        call(place)
    attempts = object_store.SDK_RETRIES + 1  # a large object's are two: writing it, and closing it
    assert proxy.num_failed in (attempts, 2 * attempts)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_refused_fails_at_once(proxy: FaultProxy, place: Location, operation: str) -> None:
    method, call, _ = OPERATIONS[operation]
    proxy.faults = lambda request: DENIED if request.method == method else None
    with pytest.raises(StorageError, match="^s3://bucket/faults.* cannot be .*ACCESS_DENIED"):
        call(place)
    assert {request.path for request in proxy.requests if request.fault} and proxy.num_failed <= 2


def test_what_is_not_there_is_said_at_once(proxy: FaultProxy, place: Location) -> None:
    nowhere = Location.parse(f"s3://no-such-bucket/{proxy.query}")
    with pytest.raises(NoSuchFile, match="^s3://bucket/faults/gone cannot be read: .*No such file"):
        read_bytes(place.child("gone"))
    assert list_names(nowhere) == [] and not nowhere.child("x").exists()
    with pytest.raises(StorageError, match="^s3://no-such-bucket/x cannot be written: .*BUCKET"):
        write_atomically(nowhere.child("x"), b"")
    delete_file(place.child("gone"))


def test_no_message_has_credentials(proxy: FaultProxy) -> None:
    proxy.faults = lambda request: DENIED
    place = Location.parse(f"s3://hush:hush%2Fhush@bucket/x{proxy.query}")
    with pytest.raises(StorageError) as raised:
        place.info()
    assert "hush" not in str(raised.value) and "s3://bucket/x" in str(raised.value)
    for uri in ("s3://hush:hush@bucket/x?secret_key=hush", "s3://hush:hu<sh@bucket/x?region=y"):
        with pytest.raises(UsageError, match="^cannot open s3://bucket: ") as refused:
            Location.parse(uri).info()
        assert "hush" not in str(refused.value) and "hu<sh" not in str(refused.value)


def test_a_write_or_its_making_that_fails_leaves_what_was_there(
    proxy: FaultProxy, place: Location
) -> None:
    def parts() -> Iterator[bytes]:
        yield CONTENT
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_stream(place.child("new"), parts())
    proxy.faults = lambda request: DENIED if "partNumber=1" in request.path else None
    for name in ("there", "new"):
        with pytest.raises(StorageError):
            write_atomically(place.child(name), LARGE)
    assert list_names(place) == ["there"] and read_bytes(place.child("there")) == CONTENT


def test_ctrl_c_waits_for_the_write(proxy: FaultProxy, place: Location) -> None:
    def interrupt(request: Request) -> Fault | None:
        if request.method != "PUT":
            return None
        _thread.interrupt_main()
        return Fault("late", seconds=0.3)

    proxy.faults = interrupt
    # A shell's background process ignores Ctrl-C, and so would this one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_atomically(place.child("new"), CONTENT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_bytes(place.child("new")) == CONTENT


def test_parquet_is_read_through_faults(proxy: FaultProxy, place: Location, tmp_path: Any) -> None:
    path = tmp_path / "sets.parquet"
    write_sets(path, text_rows(40, 5), row_group_size=10)
    write_atomically(place.child("sets.parquet"), path.read_bytes())
    proxy.faults = lambda request: TOO_MANY if request.number % 2 else None
    tables = list(read_range(place.child("sets.parquet"), 5, 33, ["query_id", "candidates"]))
    rows = [row for table in tables for row in table.to_pylist()]
    assert rows == pq.read_table(path, columns=["query_id", "candidates"])[5:33].to_pylist()
    assert proxy.num_failed > 4


@pytest.fixture
def job(place: Location, tmp_path: Path) -> tuple[Output, Plan]:
    """One unit's score file, and a part that is the same file."""
    plan = plan_of(write_sets(tmp_path / "sets.parquet", text_rows(3, 4)))
    local, _ = run_inline(plan, tmp_path / "out")
    output = Output(place)
    content = Path(local.file(plan.units[0]).path).read_bytes()
    for name in (SCORES, BY_DOCUMENT):
        write_atomically(place.child(name).child("part-000000.parquet"), content)
    return output, plan


READERS: dict[str, Callable[[Output, Plan], Any]] = {
    "verify": lambda output, plan: verify_units(plan.input, output, plan.units).num_pairs,
    "the TREC run": lambda output, plan: len(
        read_bytes(write_trec_run(output, plan.units)).splitlines()
    ),
    "status": lambda output, _: unit_files(output.directory.child(SCORES))[0].num_pairs,
    "regroup": lambda output, _: (
        _read_row_group(
            0, output.directory.child(BY_DOCUMENT).child("part-000000.parquet")
        ).num_rows
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_score_files_and_parts_are_read_with_the_same_patience(
    proxy: FaultProxy, job: tuple[Output, Plan], reader: str
) -> None:
    num_failures = 2 * (object_store.SDK_RETRIES + 1)
    proxy.faults = first(num_failures, SLOW_DOWN, "HEAD", "GET")
    assert READERS[reader](*job) == 12
    assert proxy.num_failed == num_failures


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("reader", READERS)
def test_nobody_is_told_to_delete_a_file_that_a_storage_did_not_give(
    proxy: FaultProxy, job: tuple[Output, Plan], reader: str, method: str
) -> None:
    is_file = r"part-000000\.parquet"
    proxy.faults = lambda request: (
        DENIED if request.method == method and re.search(is_file, request.path) else None
    )
    with pytest.raises(JobError, match=f"{is_file} cannot be read.*ACCESS_DENIED") as raised:
        READERS[reader](*job)
    assert "delete" not in str(raised.value)
    assert not isinstance(raised.value, VerificationError)


@pytest.mark.parametrize("reader", READERS)
def test_of_a_broken_file_it_is_said_that_it_can_be_deleted(
    proxy: FaultProxy, job: tuple[Output, Plan], reader: str
) -> None:
    output, _ = job
    for name in (SCORES, BY_DOCUMENT):
        write_atomically(output.directory.child(name).child("part-000000.parquet"), b"PAR1 PAR1")
    with pytest.raises((JobError, UsageError), match=r"part-000000\.parquet cannot .*; delete it"):
        READERS[reader](*job)


@pytest.mark.parametrize("fault", PASSING)
def test_media_are_read_through_faults(proxy: FaultProxy, place: Location, fault: str) -> None:
    reader = MediaReader(f"s3://bucket/faults{proxy.query}")
    for method in ("HEAD", "GET"):
        proxy.faults = first(1, PASSING[fault], method)
        assert reader.read("there") == CONTENT
    assert proxy.num_failed == 2


def test_media_that_are_refused_are_their_rows_error_at_once(
    proxy: FaultProxy, place: Location
) -> None:
    reader = MediaReader(f"s3://hush:hush@bucket/faults{proxy.query}")
    with pytest.raises(MediaNotFound, match="^gone: no such object$"):
        reader.read("gone")
    proxy.faults = lambda request: DENIED
    proxy.requests.clear()
    with pytest.raises(MediaUnreachable, match="^there: .*ACCESS_DENIED") as raised:
        reader.read("there")
    assert "hush" not in str(raised.value) and proxy.num_failed == 1


def test_media_are_reached_by_their_full_path_by_a_uri_and_by_the_usual_variables(
    proxy: FaultProxy, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_uri = MediaReader(f"s3://bucket/faults{proxy.query}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{proxy.netloc}")
    for reader in (by_uri, MediaReader("s3://bucket/faults")):
        assert reader.read("s3://bucket/faults/there") == reader.read("there") == CONTENT
    assert MediaReader().read("s3://bucket/faults/there") == CONTENT


@pytest.mark.parametrize(
    "option", ["tls_verify_certificates=false", "smart_defaults=standard", "tls_ca_dir_path=/etc"]
)
def test_what_only_a_uri_can_say_is_kept_and_the_rest_retried(
    proxy: FaultProxy, place: Location, option: str
) -> None:
    there = Location.parse(f"s3://bucket/faults/there{proxy.query}&{option}")
    proxy.faults = first(1, TOO_MANY, "GET")
    assert read_bytes(there) == CONTENT
    assert proxy.num_failed == 1


@pytest.mark.faults
def test_a_worker_never_runs_out_of_retries(proxy: FaultProxy, place: Location) -> None:
    """pyarrow's default strategy has 100 for the life of a filesystem: see object_store."""
    filesystem: fs.FileSystem = place.filesystem
    for _ in range(150):
        proxy.faults = first(1, SLOW_DOWN)
        assert filesystem.get_file_info(place.child("there").path).size == len(CONTENT)


@pytest.mark.faults
def test_a_server_that_never_answers_is_given_up(proxy: FaultProxy, place: Location) -> None:
    proxy.faults = lambda request: Fault("late", seconds=600)
    with pytest.raises(StorageError, match="^s3://bucket/faults/there cannot be looked at: .*Time"):
        place.child("there").info()
