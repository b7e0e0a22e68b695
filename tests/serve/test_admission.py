import pytest

from shardrank.serve.errors import TooManyRequests
from shardrank.serve.queue.admission import Admission


def test_the_speed_is_a_moving_average_in_which_full_batches_weigh_more():
    admission = Admission(5, 100, None)
    admission.scored(1, 100, 1.0, 1.0)
    assert admission.tokens_per_s == 100
    admission.scored(1, 300, 1.0, 1.0)
    assert admission.tokens_per_s == pytest.approx(200)
    admission.scored(1, 100, 0.0, 1.0)
    assert admission.tokens_per_s == pytest.approx(190)


def test_one_slow_batch_is_forgotten():
    admission = Admission(5, 100, None)
    admission.scored(1, 1_000, 1.0, 100.0)
    for _ in range(5):
        admission.scored(1, 1_000, 1.0, 1.0)
    assert admission.tokens_per_s is not None and admission.tokens_per_s > 950


@pytest.mark.parametrize(("num_tokens", "seconds"), [(0, 1.0), (10, 0.0)])
def test_a_batch_that_tells_nothing_of_the_speed_is_not_counted(num_tokens, seconds):
    admission = Admission(5, 100, None)
    admission.scored(1, num_tokens, 0.5, seconds)
    assert admission.tokens_per_s is None and admission.wait_s == 0


@pytest.mark.parametrize(
    ("num_tokens", "num_pairs", "is_refused"),
    [(50, 10, False), (51, 10, True), (50, 61, True), (50, 60, False), (51, 0, False)],
)
def test_who_is_refused(num_tokens, num_pairs, is_refused):
    admission = Admission(5, 100, None)
    admission.scored(1, 100, 1.0, 10.0)
    admission.check(1_000_000)
    admission.add(40, num_tokens)
    if not is_refused:
        return admission.check(num_pairs)
    with pytest.raises(TooManyRequests) as raised:
        admission.check(num_pairs)
    assert raised.value.retry_after_s == pytest.approx(num_tokens / 10)


def test_before_the_first_batch_pairs_alone_count():
    admission = Admission(5, 100, None)
    admission.add(40, 10**9)
    admission.check(60)
    with pytest.raises(TooManyRequests):
        admission.check(61)
