import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from shardrank.jobs.command import pasteable
from shardrank.jobs.interruption import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_swallowed_interruption_is_raised_again(number):
    with interruptible() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            check()


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_nothing_is_changed():
    checked = []

    def use():
        with interruptible() as check:
            check()
            checked.append(True)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert checked == [True]


def test_a_handler_that_ray_sets_meanwhile_is_taken_away_again():
    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as check:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(15))  # as ray.init does
        check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


USES_RAY = """
import os, signal, time
from shardrank.jobs.interruption import interruptible
from shardrank.jobs.cluster import connected

with interruptible() as check:
    with connected(None):
        check()
    check()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_sigterm_interrupts_also_after_ray_has_come_and_gone():
    """Of what ray.shutdown sets, Python's own table of handlers knows nothing."""
    done = subprocess.run([sys.executable, "-c", USES_RAY], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


HANGS = """
import time
from shardrank.jobs import interruption
interruption.LEAVES_AFTER_S = 1.0
with interruption.interruptible(["rerank", "--output", "a b"]):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        time.sleep(60)  # a storage that does not answer
"""


def test_a_command_ends_though_something_hangs_that_is_to_be_done_before() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.decode().splitlines()[-1] == f"  {pasteable(['rerank', '--output', 'a b'])}"
