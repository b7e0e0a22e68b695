import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.serve.errors import TooManyRequests
from shardrank.serve.gate.key_file import ApiKey, hash_key
from shardrank.serve.gate.keys import RateLimiter, burst


def key_of(requests_per_minute=None, max_concurrent=None, name="team") -> ApiKey:
    return ApiKey(name, hash_key(name), requests_per_minute, max_concurrent)


class Clock:
    """Starts far from 0, as the monotonic clock of a machine that has been up for long."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock) -> RateLimiter:
    return RateLimiter(clock)


def admitted(limiter: RateLimiter, key: ApiKey, tries: int) -> int:
    """How many of so many requests, one after the other, are let in."""
    count = 0
    for _ in range(tries):
        try:
            with limiter.admit(key):
                count += 1
        except TooManyRequests:
            pass
    return count


def refusal(limiter: RateLimiter, key: ApiKey) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as caught, limiter.admit(key):
        pytest.fail("was let in")
    return caught.value


# Requests a minute


@pytest.mark.parametrize(
    ("requests_per_minute", "num"), [(1, 1), (6, 1), (11, 1), (12, 2), (60, 10), (600, 100)]
)
def test_a_quiet_key_may_send_ten_seconds_worth_at_once(limiter, requests_per_minute, num):
    assert admitted(limiter, key_of(requests_per_minute), 200) == num


def test_a_pause_refills_the_bucket_continuously_and_never_past_its_burst(limiter, clock):
    key = key_of(60)
    assert admitted(limiter, key, 20) == 10
    for pause_s, num in [(0.5, 0), (0.5, 1), (3.25, 3), (0.75, 1), (3600, 10)]:
        clock.now += pause_s
        assert admitted(limiter, key, 20) == num, pause_s


@settings(deadline=None)
@given(
    requests_per_minute=st.integers(1, 40),
    steps=st.lists(
        st.tuples(st.floats(0, 20) | st.sampled_from([0, 1.5, 10, 60, 300]), st.integers(1, 12)),
        max_size=60,
    ),
)
def test_no_window_of_a_minute_admits_more_than_a_minutes_requests_and_a_burst(
    requests_per_minute, steps
):
    clock = Clock(0.0)
    limiter, key, times = RateLimiter(clock), key_of(requests_per_minute), []
    for step_s, tries in steps:
        clock.now += step_s
        times += [clock.now] * admitted(limiter, key, tries)
    for start in times:
        in_window = [each for each in times if start <= each <= start + 60]
        assert len(in_window) <= requests_per_minute + max(1, requests_per_minute / 6)


def test_an_eager_key_gets_its_whole_minute(limiter, clock):
    """The bound above would also hold for a limiter that refuses everybody."""
    key, total = key_of(90), 0
    for _ in range(601):
        total += admitted(limiter, key, 3)
        clock.now += 0.1
    assert total == 90 + 15


@settings(deadline=None)
@given(
    requests_per_minute=st.integers(1, 6000),
    start=st.floats(0, 1e7),
    pauses=st.lists(st.floats(0, 100), max_size=5),
)
def test_who_waits_as_long_as_told_is_let_in(requests_per_minute, start, pauses):
    clock = Clock(start)
    limiter, key = RateLimiter(clock), key_of(requests_per_minute)
    for pause_s in [0.0, *pauses]:
        clock.now += pause_s
        admitted(limiter, key, int(burst(requests_per_minute)))
        try:
            with limiter.admit(key):
                continue  # a part of a token was left over
        except TooManyRequests as error:
            clock.now += error.retry_after_s
        with limiter.admit(key):
            pass


def test_a_refusal_says_how_long_to_wait_and_what_the_limit_is(limiter, clock):
    key = key_of(6)
    assert admitted(limiter, key, 1) == 1
    clock.now += 4
    error = refusal(limiter, key)
    assert (error.status, error.code) == (429, "rate_limited")
    assert error.retry_after_s == pytest.approx(6)
    assert error.headers == {"Retry-After": "6"}
    assert "6 requests a minute" in str(error)
    assert key.name not in str(error) and key.sha256 not in str(error)


def test_a_request_that_fails_has_taken_its_token(limiter):
    key = key_of(6)
    with pytest.raises(KeyError), limiter.admit(key):
        raise KeyError
    assert refusal(limiter, key).code == "rate_limited"


# At once


def test_no_more_requests_run_than_the_key_may(limiter):
    key = key_of(max_concurrent=2)
    with limiter.admit(key):
        with limiter.admit(key):
            error = refusal(limiter, key)
        with limiter.admit(key):
            refusal(limiter, key)
    assert (error.status, error.code) == (429, "too_many_concurrent")
    assert error.retry_after_s == 1
    assert "2 requests running at once" in str(error)
    assert key.name not in str(error) and key.sha256 not in str(error)


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, KeyboardInterrupt])
def test_a_request_that_fails_gives_its_slot_back(limiter, error):
    key = key_of(max_concurrent=1)
    for _ in range(3):
        with pytest.raises(error), limiter.admit(key):
            raise error


# Both, and several keys


def test_a_request_refused_for_concurrency_takes_no_token(limiter):
    key = key_of(12, max_concurrent=1)
    with limiter.admit(key):
        assert admitted(limiter, key, 5) == 0
    assert admitted(limiter, key, 5) == 1


def test_a_request_refused_for_its_rate_takes_no_slot(limiter, clock):
    key = key_of(6, max_concurrent=1)
    assert admitted(limiter, key, 5) == 1
    clock.now += 10
    assert admitted(limiter, key, 5) == 1


@pytest.mark.parametrize("limits", [{"requests_per_minute": 6}, {"max_concurrent": 1}])
def test_one_keys_requests_do_not_count_for_another(limiter, limits):
    with limiter.admit(key_of(**limits)):
        refusal(limiter, key_of(**limits))
        with limiter.admit(key_of(**limits, name="other")):
            pass


def test_a_key_keeps_its_count_when_it_is_read_again(limiter):
    """As by a server that reads its file anew, perhaps with other limits."""
    with limiter.admit(key_of(max_concurrent=1)):
        refusal(limiter, key_of(max_concurrent=1))
        refusal(limiter, key_of(600, max_concurrent=1))
        with limiter.admit(key_of(max_concurrent=2)):
            pass


def test_a_key_without_limits_is_always_let_in_without_a_look_at_the_clock():
    def no_clock() -> float:
        raise AssertionError("the clock was read")

    limiter, key = RateLimiter(no_clock), key_of()
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(limiter.admit(key))


# Threads


def test_threads_that_ask_at_the_same_time_do_not_share_a_slot():
    """The clock is slow, so that without a lock all would look before the first counts."""

    def slow_clock() -> float:
        time.sleep(0.01)
        return 0.0

    limiter, key = RateLimiter(slow_clock), key_of(600, max_concurrent=2)
    all_have_asked = threading.Barrier(8, timeout=30)

    def is_admitted(_: int) -> bool:
        try:
            with limiter.admit(key):
                all_have_asked.wait()
                return True
        except TooManyRequests:
            all_have_asked.wait()
            return False

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(is_admitted, range(8))) == 2
