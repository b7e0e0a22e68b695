from collections import Counter

import pytest

from shardrank.jobs.errors import TooManyErrors, UsageError
from shardrank.jobs.outputs.budget import Budget, MaxErrors


@pytest.mark.parametrize(
    ("text", "num_pairs", "limit"),
    [
        ("1%", 10_000_000, 100_000),
        ("0.5%", 1_000, 5),
        ("250", 10**7, 250),
        ("0", 5, 0),
        ("0%", 9, 0),
    ],
)
def test_a_share_or_a_number(text, num_pairs, limit):
    assert MaxErrors.parse(text).limit(num_pairs) == limit


def test_the_default_lets_a_small_job_have_its_errors():
    assert MaxErrors().limit(20) == 100
    assert MaxErrors().limit(1_000_000) == 10_000


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "%", "1 %", "many"])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match="--max-errors"):
        MaxErrors.parse(text)


def test_the_budget_ends_with_the_first_error_too_many():
    budget = Budget(MaxErrors.parse("10"), 1_000)
    budget.add(Counter(image_decode=7))
    budget.add(Counter(crashed=3))
    with pytest.raises(TooManyErrors, match=r"11 of 1,000 pairs .*8 x image_decode, 3 x crashed"):
        budget.add(Counter(image_decode=1))


def test_what_goes_on_after_too_many_errors_is_said_with_an_example():
    budget = Budget(MaxErrors.parse("1"), 1_000)
    says = "https://host/a.png: media over http(s) are not allowed"
    with pytest.raises(TooManyErrors, match=r"allows \(1\); one says: https://host/a.png") as error:
        budget.add(Counter(media_forbidden=2, null_id=1), [says, "another one"])
    added = [way.arguments for way in error.value.ways]
    assert added == [
        ("--max-errors=100%",),
        ("--retry-errors=media_forbidden", "--web-media"),
    ]
