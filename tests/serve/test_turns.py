from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
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


BATCHES = {
    "requests take turns": ([[1, 2, 3], [10, 20], [100]], 1_000, [[1, 10, 100, 2, 20, 3]]),
    "turns go on": ([[50, 51, 52], [40, 41], [10]], 100, [[50, 40, 10], [51, 41], [52], []]),
    "whose piece does not fit is first": ([[60], [90], [30, 31]], 100, [[60, 30], [90], [31]]),
    "who was taken is last": ([[90, 91], [50]], 100, [[90], [50], [91]]),
    "too large a piece goes alone": ([[500], [1], [300, 0]], 100, [[500], [1], [300], [0]]),
}


@pytest.mark.parametrize(("sizes", "budget", "batches"), BATCHES.values(), ids=BATCHES)
def test_pieces_of_whom_are_in_which_batch(sizes, budget, batches):
    turns = line(*sizes)
    assert [taken(next_batch(turns, budget)) for _ in batches] == batches


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


@pytest.mark.parametrize(
    ("others", "has", "takes_media"),
    [
        pytest.param((10, "t"), (9, "t"), True, id="who has enough ahead"),
        pytest.param((0, "m"), (0, "tm"), False, id="media, by a thread for text"),
    ],
)
def test_who_is_passed_over_keeps_the_place_in_the_line(others, has, takes_media):
    turns = asking(others, has)
    passed, other = turns
    found = next_slice(turns, 10, takes_media)
    assert found is not None and found[0] is other
    assert next_slice(turns, 10, takes_media) is None
    assert list(turns) == ([passed, other] if other.slices else [passed])
