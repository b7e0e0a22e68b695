"""One run at a time writes to an output directory."""

import json
import shutil
import subprocess
import sys
import time
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.outputs import lease
from shardrank.jobs.outputs.lease import LEASE, holder_of, is_known_dead, leased
from shardrank.jobs.storage import Location


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RENEW_EVERY_S": 0.05,
        "EXPIRES_S": 0.4,
        "_POLL_EVERY_S": 0.05,
        "_SETTLE_S": 0.05,
        "_REMOTE_SETTLE_S": 0.05,
    }.items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture(params=["local", "s3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location.parse(str(tmp_path / "out"))
    address = request.getfixturevalue("s3_endpoint").removeprefix("http://")
    query = f"?scheme=http&endpoint_override={address}&region=us-east-1"
    return Location.parse(f"s3://bucket/{tmp_path.name}{query}")


def left_behind(directory: Path, **changes: Any) -> Path:
    """The file of a run on this host that is no more, or as changed."""
    code = "import json; from shardrank.jobs.outputs import lease; "
    code += "print(json.dumps(lease._ourselves()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / LEASE
    place.write_text(
        json.dumps(json.loads(done.stdout) | {"run": "before", "renewed": 3} | changes)
    )
    return place


def test_a_second_run_is_refused_while_the_first_lives(directory: Location) -> None:
    with (
        leased(directory),
        pytest.raises(UsageError, match="being written by another run") as told,
        leased(directory),
    ):
        pass
    assert "process" in str(told.value) and "since" in str(told.value)
    with leased(directory):  # the first one is over
        pass
    assert holder_of(directory) is None


@pytest.mark.parametrize("call", ["sleep", "write_atomically"])
def test_a_run_that_is_interrupted_while_it_takes_the_lease_holds_nothing(
    directory: Location, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    if directory.is_local and call == "sleep":
        pytest.skip("on a local disk nothing is waited for")
    module = lease.time if call == "sleep" else lease
    original = getattr(module, call)

    def interrupted(*arguments: Any) -> None:
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, call, interrupted)
        with pytest.raises(KeyboardInterrupt), leased(directory):
            pass
    assert holder_of(directory) is None


def test_a_run_of_this_host_that_was_killed_is_known_dead_at_once(tmp_path: Path, caplog) -> None:
    left_behind(tmp_path)
    with leased(Location.parse(str(tmp_path))) as check:
        check()
    assert "waiting" not in caplog.text


def test_a_process_number_that_was_given_again_is_not_the_run(tmp_path: Path) -> None:
    import os

    left_behind(tmp_path, pid=os.getpid())
    with leased(Location.parse(str(tmp_path))) as check:
        check()


def test_a_run_elsewhere_is_dead_when_its_file_stays_as_it_is(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    left_behind(tmp_path, host="elsewhere")
    with leased(Location.parse(str(tmp_path))) as check:
        check()
    assert "elsewhere" in caplog.text and "it does not" in caplog.text


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="no PID namespaces here")
@pytest.mark.parametrize("namespace", ["pid:[1]", None])
def test_a_run_in_another_container_is_not_known_dead(
    tmp_path: Path, caplog, namespace: str | None
) -> None:
    """Nor one of an earlier version, which did not say in which it was."""
    caplog.set_level("INFO")
    place = left_behind(tmp_path, pid_namespace=namespace)
    holder = json.loads(place.read_text())
    if namespace is None:
        del holder["pid_namespace"]
        place.write_text(json.dumps(holder))
    assert not is_known_dead(holder)
    with leased(Location.parse(str(tmp_path))) as check:
        check()
    assert "waiting" in caplog.text and "it does not" in caplog.text


def test_a_run_that_lives_in_another_container_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRES_S", 60.0)
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"]).returncode:
        pytest.skip("no right to make a PID namespace here")
    place = tmp_path / "out"
    hold = (
        "import sys, time; from shardrank.jobs.outputs import lease\n"
        "from shardrank.jobs.storage import Location\n"
        "lease.RENEW_EVERY_S = 0.05\n"
        "with lease.leased(Location.parse(sys.argv[1])): time.sleep(600)"
    )
    holder = subprocess.Popen([*inside, sys.executable, "-c", hold, str(place)])
    try:
        while not (place / LEASE).exists():
            assert holder.poll() is None
            time.sleep(0.05)
        with (
            pytest.raises(UsageError, match="being written by another run"),
            leased(Location.parse(str(place))),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_who_is_taken_over_learns_it(directory: Location, tmp_path: Path) -> None:
    from shardrank.jobs.storage import write_atomically

    with leased(directory) as check:
        check()
        with lease._locked(directory):
            write_atomically(directory.child(LEASE), b'{"run": "another"}')
        for _ in range(100):
            try:
                check()
            except JobError as error:
                assert "another run has taken over" in str(error)
                break
            lease.time.sleep(0.05)
        else:
            pytest.fail("it did not learn it")
    assert holder_of(directory) == {"run": "another"}  # which it does not remove


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_of_some_that_begin_at_once_all_but_one_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_taken_over: bool
) -> None:
    """However late each comes to write, as under load."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    delays = chain((0.0, 0.2, 0.4, 0.6), repeat(0.0))
    write = lease.write_atomically

    def slowly(*given: Any) -> None:
        time.sleep(next(delays))
        write(*given)

    monkeypatch.setattr(lease, "write_atomically", slowly)
    if is_taken_over:
        left_behind(tmp_path)
    barrier = Barrier(4)
    over = Barrier(4)

    def attempt(_: int) -> bool:
        barrier.wait()
        try:
            with leased(Location.parse(str(tmp_path))):
                over.wait()
                return True
        except UsageError:
            over.wait()
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 1


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = Location.parse(str(tmp_path / "file" / "out"))
    with pytest.raises(UsageError, match="cannot be written"), leased(place):
        pass
