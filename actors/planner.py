"""Which pairs ride together: plans of about max_batch_tokens packed tokens, in input order.

A set's documents stay together, because they share the query's tokens. Plain numbers in and out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actors.packing import common_prefix_length, sharing_keys
from actors.prepared import PreparedPair


@dataclass(frozen=True, slots=True)
class PairCost:
    """Tokens of one pair: `shared` with the others of its `group` (an index), `own` alone."""

    group: int
    shared: int
    own: int


def set_costs(pairs: Sequence[PreparedPair], group: int) -> list[PairCost]:
    """Costs of one candidate set's pairs; what all of them share is the system prompt and query."""
    if not pairs:
        return []
    keys = [sharing_keys(pair) for pair in pairs]
    shared = min(common_prefix_length(keys[0], key) for key in keys)
    return [PairCost(group, shared, len(key) - shared) for key in keys]


def plan(costs: Sequence[PairCost], max_batch_tokens: int) -> list[list[int]]:
    """Consecutive pairs of about equal packed size, none over the budget but a pair alone.

    The size is an upper bound: sharing beyond a set's own prefix is not counted.
    """
    if not costs:
        return []
    total = _packed_size(costs)
    target = math.ceil(total / math.ceil(total / max_batch_tokens))
    plans: list[list[int]] = [[]]
    size = 0
    for index, cost in enumerate(costs):
        current = plans[-1]
        added = cost.own + (
            0 if current and costs[current[-1]].group == cost.group else cost.shared
        )
        is_full = size + added > max_batch_tokens or size >= target
        if current and is_full:
            plans.append([])
            size, added = 0, cost.own + cost.shared
        plans[-1].append(index)
        size += added
    return plans


def _packed_size(costs: Sequence[PairCost]) -> int:
    shared = {cost.group: cost.shared for cost in costs}
    return sum(cost.own for cost in costs) + sum(shared.values())
