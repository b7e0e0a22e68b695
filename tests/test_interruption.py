import contextlib
import os
import signal
import threading

import pytest

from jobs.interruption import interruptible


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
