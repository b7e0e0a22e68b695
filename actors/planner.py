"""Which pairs ride together: plans of about max_batch_tokens packed tokens, in input order.

A set's documents stay together, because they share the query's tokens. Plain numbers in and out.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from shardrank.actors.packing import common_prefix_length, sharing_keys
from shardrank.actors.prepared import PreparedPair


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
    """Consecutive pairs, none over the budget but a pair alone; as few plans as that allows, and
    of those the evenest (the largest as small as it can be).

    What is counted are the tokens to compute: of a set that goes on in the next plan its shared
    ones come from the plan before. An upper bound: sharing beyond a set's own is not counted.
    """
    num_plans = len(_fill(costs, max_batch_tokens))
    smallest = bisect_left(
        range(max_batch_tokens), True, key=lambda limit: len(_fill(costs, limit)) <= num_plans
    )
    return _fill(costs, smallest)


def _fill(costs: Sequence[PairCost], limit: int) -> list[list[int]]:
    plans: list[list[int]] = []
    size, group = 0, None
    for index, cost in enumerate(costs):
        tokens = cost.own if cost.group == group else cost.own + cost.shared
        if not plans or size + tokens > limit:
            plans.append([])
            size = 0  # a set that goes on brings what it shares from the plan before
        plans[-1].append(index)
        size += tokens
        group = cost.group
    return plans
