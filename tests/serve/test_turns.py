from collections import deque
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shardrank.serve.queue.batching import Turns, next_batch, next_slice


class Request(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def line(*sizes: list[int]) -> Any:
    """Requests with pieces of so many tokens each."""
    requests = [Request(ready=deque(SimpleNamespace(num_tokens=n) for n in own)) for own in sizes]
    return Turns.fromkeys(requests)


def taken(batch: Any) -> list[int]:
    return [piece.num_tokens for _, piece in batch]


def test_requests_take_turns_within_a_batch():
    assert taken(next_batch(line([1, 2, 3], [10, 20], [100]), 1_000)) == [1, 10, 100, 2, 20, 3]


def test_turns_go_on_in_the_next_batch():
    turns = line([50, 51, 52], [40, 41], [10])
    assert [taken(next_batch(turns, 100)) for _ in range(4)] == [[50, 40, 10], [51, 41], [52], []]


def test_whose_piece_does_not_fit_comes_first_in_the_next_batch():
    turns = line([60], [90], [30, 31])
    assert [taken(next_batch(turns, 100)) for _ in range(3)] == [[60, 30], [90], [31]]


def test_who_was_taken_goes_to_the_end_of_the_line():
    turns = line([90, 91], [50])
    assert [taken(next_batch(turns, 100)) for _ in range(3)] == [[90], [50], [91]]


def test_a_piece_larger_than_a_batch_goes_alone():
    turns = line([500], [1], [300, 0])
    assert [taken(next_batch(turns, 100)) for _ in range(3)] == [[500], [1], [300]]
    assert taken(next_batch(turns, 100)) == [0]


@given(
    st.lists(st.lists(st.integers(0, 130), min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(1, 120),
)
def test_everything_is_taken_once_in_each_requests_order(sizes, budget):
    turns = line(*sizes)
    requests = list(turns)
    seen: dict[Any, list[int]] = {request: [] for request in requests}
    while turns:
        first = next(iter(turns))
        batch = next_batch(turns, budget)
        assert batch[0][0] is first
        assert sum(taken(batch)) <= budget or len(batch) == 1
        for request, piece in batch:
            seen[request].append(piece.num_tokens)
    assert list(seen.values()) == sizes


def asking(*requests: tuple[int, str]) -> Any:
    """Requests with so many tokens ahead and slices of text (t) or media (m)."""
    return Turns.fromkeys(
        Request(num_ahead=ahead, slices=deque(SimpleNamespace(has_media=s == "m") for s in kinds))
        for ahead, kinds in requests
    )


def test_slices_are_taken_in_turn():
    turns = asking((0, "tt"), (0, "t"), (0, "tt"))
    first, second, third = turns
    order = []
    while found := next_slice(turns, 10, takes_media=True):
        order.append(found[0])
    assert order == [first, second, third, first, third]
    assert not turns


def test_who_has_enough_ahead_is_passed_over():
    turns = asking((10, "t"), (9, "t"))
    full, other = turns
    found = next_slice(turns, 10, takes_media=True)
    assert found is not None and found[0] is other
    assert next_slice(turns, 10, takes_media=True) is None
    assert list(turns) == [full]


def test_a_thread_for_text_leaves_media_to_others():
    turns = asking((0, "m"), (0, "tm"))
    pages, mixed = turns
    found = next_slice(turns, 10, takes_media=False)
    assert found is not None and found[0] is mixed
    assert next_slice(turns, 10, takes_media=False) is None
    assert list(turns) == [pages, mixed]
