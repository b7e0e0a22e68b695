"""What the log of attempts makes of deaths, without processes: an attempt dies by not ending."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from shardrank.actors.errors import Crashed, TimedOut
from shardrank.jobs.run.attempts import MAX_DEATHS, MAX_DEATHS_OF_WORK, Attempt, AttemptLog

WORK = ("prepare", 7)


def dies(log: AttemptLog, *steps: tuple, work: tuple = WORK) -> None:
    """An attempt that dies within the last of nested steps."""
    attempt = Attempt(log, work)
    for step in steps:
        attempt._steps.append(step)
        attempt._enter(step)


def test_the_first_death_is_nobodys_and_makes_the_next_attempt_tell_its_steps():
    log = AttemptLog()
    assert Attempt(log, WORK).num_deaths == 0
    dies(log, ("pair", 0, 3))
    attempt = Attempt(log, WORK)
    assert attempt.num_deaths == 2 and attempt.failure("pair", 0, 3) is None


def test_a_step_that_two_attempts_died_at_is_given_up_and_no_other():
    log = AttemptLog()
    dies(log)
    for _ in range(MAX_DEATHS):
        dies(log, ("pair", 0, 3))
    attempt = Attempt(log, WORK)
    assert isinstance(attempt.failure("pair", 0, 3), Crashed)
    assert attempt.failure("pair", 0, 4) is None
    assert Attempt(log, ("prepare", 8)).failure("pair", 0, 3) is None


def test_the_inner_step_is_to_blame_while_it_lasts_and_then_the_outer_one():
    log = AttemptLog()
    dies(log)
    for _ in range(2):
        dies(log, ("pair", 0, 0), ("query", 0))
    attempt = Attempt(log, WORK)
    assert attempt.failure("query", 0) and not attempt.failure("pair", 0, 0)
    for _ in range(2):
        attempt = Attempt(log, WORK)
        attempt._steps.append(("pair", 0, 1))
        with attempt.step("query", 0):
            pass
    assert Attempt(log, WORK).failure("pair", 0, 1)


def test_an_attempt_that_ends_leaves_nothing():
    log = AttemptLog()
    dies(log)
    Attempt(log, WORK).end()
    assert Attempt(log, WORK).num_deaths == 0


def test_a_step_that_hung_has_timed_out():
    log = AttemptLog()
    for _ in range(2):
        Attempt(log, WORK)
        log.at(WORK, ("pair", 0, 3), hangs=True)
    failure = Attempt(log, WORK, timeout_s=20.0).failure("pair", 0, 3)
    assert isinstance(failure, TimedOut) and "over 20 s, 2 times" in str(failure)


def test_a_read_that_is_given_up_ends_the_unit_after_the_rows_before_it():
    log = AttemptLog()
    dies(log)
    for _ in range(2):
        dies(log, ("read", "rows", 2))
    reads = Attempt(log, WORK).reads(iter("abcd"))
    assert [next(reads), next(reads)] == ["a", "b"]
    with pytest.raises(Crashed, match="died 2 times"):
        next(reads)


def test_a_work_that_dies_at_no_step_is_given_up_too():
    log = AttemptLog()
    for number in range(MAX_DEATHS_OF_WORK):
        assert list(Attempt(log, WORK).reads(iter("a"))) == ["a"], number
    with pytest.raises(Crashed, match="at no row"):
        next(Attempt(log, WORK).reads(iter("a")))


def test_a_log_that_is_killed_knows_afterwards_what_it_knew(tmp_path):
    journal = tmp_path / "journal"
    log = AttemptLog(str(journal))
    dies(log)
    dies(log, ("pair", 0, 3))
    log.at(WORK, ("pair", 0, 3), hangs=True)
    dies(log, work=("score", 1, 0))
    Attempt(log, ("score", 1, 0)).end()
    log.fail(4, "a file\nthat is gone \u2028")
    log.lose_video("a file's key", "it hung")
    with journal.open("a") as stream:
        stream.write('["begin", ["prep')  # killed while it wrote
    again = AttemptLog(str(journal))
    assert again.lost_video("a file's key") == "it hung"
    assert again.failures() == {4: "a file\nthat is gone \u2028"}
    assert again.begin(WORK) == {(): (1, False), ("pair", 0, 3): (1, True)} == log.begin(WORK)
    assert again.begin(("score", 1, 0)) == {}
    assert AttemptLog(str(journal)).begin(WORK)[("pair", 0, 3)] == (1, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_log_on_a_full_disk_goes_on_without_its_journal(tmp_path):
    log = AttemptLog(str(tmp_path / "journal"))
    log._journal = open("/dev/full", "a", buffering=1)  # noqa: SIM115  closing it raises too
    dies(log)
    assert Attempt(log, WORK).num_deaths == 1
    with contextlib.suppress(OSError):
        log._journal.close()


def test_where_an_output_was_cut_is_known_after_the_works_end_and_the_logs(tmp_path):
    log = AttemptLog(str(tmp_path / "journal"))
    for _ in range(2):  # a call may be made again where the log dies of it
        Attempt(log, WORK).cut(0, 16)
    Attempt(log, WORK).cut(1, 32)
    Attempt(log, WORK).end()
    for known in (log, AttemptLog(str(tmp_path / "journal"))):
        assert Attempt(known, WORK).cuts() == {0: 16, 1: 32}
        assert Attempt(known, ("prepare", 8)).cuts() == {}


HANGS = """
import re, sys, time
from shardrank.jobs.run import attempts
attempts._GRACE_S = 1.0

class Told(attempts.AttemptLog):
    def at(self, work, step, hangs=False):
        print(work, step, hangs, flush=True)

attempt = attempts.Attempt(Told(), ("prepare", 0), timeout_s=0.5, first_timeout_s=60)
with attempt.step("pair", 0, 0):
    time.sleep(1.5)  # which is no hang, for it is the first
    for _ in range(20):
        attempt.progress()
        time.sleep(0.1)  # nor is this, though together they are longer than the limit
with attempt.step("pair", 0, 1):
    {hang}
"""


@pytest.mark.parametrize(
    ("hang", "told", "why"),
    [
        ("time.sleep(60)", b"('prepare', 0) ('pair', 0, 1) True\n", b"most recent call first"),
        ("re.match('(a+)+$', 'a' * 64 + 'b')  # with Python's lock", b"", b"Timeout"),
    ],
)
def test_a_process_that_hangs_in_a_step_ends_itself(hang, told, why):
    code = HANGS.replace("{hang}", hang)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, told)
    assert why in ended.stderr
