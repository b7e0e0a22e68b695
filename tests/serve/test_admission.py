import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardrank.serve.errors import TooManyRequests
from shardrank.serve.queue.batching import Admission

TURN = 10


def test_the_speed_is_a_moving_average_in_which_full_batches_weigh_more():
    admission = Admission(5, 100, TURN, None)
    admission.scored(1, 100, 1.0, 1.0)
    assert admission.tokens_per_s == 100
    admission.scored(1, 300, 1.0, 1.0)
    assert admission.tokens_per_s == pytest.approx(200)
    admission.scored(1, 100, 0.0, 1.0)
    assert admission.tokens_per_s == pytest.approx(190)


@pytest.mark.parametrize(("num_tokens", "seconds"), [(0, 1.0), (10, 0.0)])
def test_a_batch_that_tells_nothing_of_the_speed_is_not_counted(num_tokens, seconds):
    admission = Admission(5, 100, TURN, None)
    admission.scored(1, num_tokens, 0.5, seconds)
    assert admission.tokens_per_s is None and admission.wait_s([50], 10) == 0


def at_ten_tokens_a_second() -> Admission:
    admission = Admission(5, 100, TURN, None)
    admission.scored(1, 100, 1.0, 10.0)
    admission.add(1, 1)  # somebody is in
    return admission


@pytest.mark.parametrize(
    ("left", "num_tokens", "seconds"),
    [
        ([], 1_000, 0),  # alone
        ([40], 1_000, 4),  # who brings more waits for all of it
        ([1_000_000], 1, 1),  # who brings little, for one turn of the giant
        ([1_000_000], 30, 3),  # for as much of it as one has oneself
        ([1_000_000, 5, 30], 20, 4.5),
        ([1_000] * 7, 1, 7),  # for one turn of each
    ],
)
def test_what_a_request_waits_for_the_others(left, num_tokens, seconds):
    assert at_ten_tokens_a_second().wait_s(left, num_tokens) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("left", "num_pairs", "num_tokens", "retry_after_s"),
    [
        ([50], 1_000_000, 10**9, None),  # five seconds, which is not too long
        ([51], 0, 10**9, None),  # nothing to wait with
        ([1_000_000], 1, 50, None),
        ([51], 1, 10**9, 0.1),
        ([90], 1, 10**9, 4),
        ([1_000], 1, 60, 95),  # until the giant has little enough left
        ([1_000] * 6, 1, 1, 595),  # until all of them have
        ([20, 1_000] * 3, 1, 15, 11),  # until the three small ones are nearly done
    ],
)
def test_who_is_refused_and_when_there_is_room(left, num_pairs, num_tokens, retry_after_s):
    admission = at_ten_tokens_a_second()
    if retry_after_s is None:
        return admission.check(left, num_pairs, num_tokens)
    with pytest.raises(TooManyRequests) as raised:
        admission.check(left, num_pairs, num_tokens)
    assert raised.value.retry_after_s == pytest.approx(retry_after_s)


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=8),
    st.integers(0, 10_000),
)
def test_who_comes_back_when_told_is_taken(left, num_tokens):
    """The others share the scorer equally until then."""
    admission = at_ten_tokens_a_second()
    try:
        admission.check(left, 1, num_tokens)
    except TooManyRequests as error:
        assert error.retry_after_s is not None
        tokens = error.retry_after_s * 10 + 1
        while tokens > 1e-3 and left:
            share = min(min(left), tokens / len(left))
            tokens -= share * len(left)
            left = [each - share for each in left if each - share > 1e-6]
        admission.check(left, 1, num_tokens)


def test_before_the_first_batch_pairs_alone_count():
    admission = Admission(5, 100, TURN, None)
    admission.check([], 1_000_000, 10**9)
    admission.add(40, 10**9)
    admission.check([10**9], 60, 10**9)
    with pytest.raises(TooManyRequests):
        admission.check([10**9], 61, 10)
