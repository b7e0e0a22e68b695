import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.actors.planner import PairCost, plan, set_costs
from shardrank.actors.prepared import PreparedPair


def prepared(ids: list[int], visuals: list[int] | None = None) -> PreparedPair:
    index = np.array(visuals or [-1] * len(ids), dtype=np.int32)
    positions = np.tile(np.arange(len(ids), dtype=np.int32), (3, 1))
    return PreparedPair(np.array(ids, dtype=np.int32), positions, index, False)


def packed_tokens(costs: list[PairCost], indices: list[int]) -> int:
    """Tokens to compute; the plan before has what a set shares that began in it."""
    before = costs[indices[0] - 1].group if indices[0] else None
    prefixes = {costs[i].group: costs[i].shared for i in indices if costs[i].group != before}
    return sum(prefixes.values()) + sum(costs[index].own for index in indices)


@st.composite
def many_costs(draw: st.DrawFn) -> list[PairCost]:
    sets = draw(st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=5))
    shared = [draw(st.integers(0, 60)) for _ in sets]
    return [PairCost(g, shared[g], own) for g, owns in enumerate(sets) for own in owns]


@settings(deadline=None)
@given(many_costs(), st.integers(1, 300))
def test_every_pair_rides_once_and_in_order(costs: list[PairCost], budget: int) -> None:
    plans = plan(costs, budget)
    assert all(plans)
    assert [index for indices in plans for index in indices] == list(range(len(costs)))


@settings(deadline=None)
@given(many_costs(), st.integers(1, 300))
def test_only_a_pair_alone_exceeds_the_budget(costs: list[PairCost], budget: int) -> None:
    for indices in plan(costs, budget):
        assert len(indices) == 1 or packed_tokens(costs, indices) <= budget


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(20, 400))
def test_plans_of_equal_pairs_are_filled_evenly(num_pairs: int, own: int, budget: int) -> None:
    costs = [PairCost(group, 0, own) for group in range(num_pairs)]
    sizes = [len(indices) for indices in plan(costs, budget)]
    assert len(sizes) == -(-num_pairs // (budget // own))
    assert max(sizes) == -(-num_pairs // len(sizes))


def test_a_set_that_goes_on_brings_its_shared_prefix_along() -> None:
    costs = [PairCost(0, 50, 10) for _ in range(11)] + [PairCost(1, 50, 10)]
    assert plan(costs, 80) == [[0, 1, 2], list(range(3, 11)), [11]]
    assert plan(costs[:11], 80) == [[0, 1, 2], list(range(3, 11))]


def test_nothing_gives_no_plan() -> None:
    assert plan([], 100) == [] == set_costs([], 0)


def test_a_set_shares_what_all_its_pairs_start_with() -> None:
    pairs = [prepared([1, 2, 3, 4]), prepared([1, 2, 5]), prepared([1, 2, 3, 9, 9])]
    assert set_costs(pairs, 7) == [PairCost(7, 2, 2), PairCost(7, 2, 1), PairCost(7, 2, 3)]


@pytest.mark.parametrize(("visual", "shared"), [(0, 3), (1, 1)])
def test_placeholders_are_shared_only_where_the_visual_is_the_same(
    visual: int, shared: int
) -> None:
    pairs = [
        prepared([1, 8, 8, 3], [-1, 0, 0, -1]),
        prepared([1, 8, 8, 4], [-1, visual, visual, -1]),
    ]
    assert [cost.shared for cost in set_costs(pairs, 0)] == [shared, shared]
