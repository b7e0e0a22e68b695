"""For libraries that take one instruction for a whole call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from bench.peers.protocol import CandidateSet


def score_by_instruction(
    sets: list[CandidateSet], score: Callable[[list[CandidateSet], str | None], list[float]]
) -> list[list[float]]:
    """Sets with the same instruction go into one call of `score`, which answers pair after pair.

    It gets None for the default instruction.
    """
    scores: list[list[float]] = [[] for _ in sets]
    indices_by_instruction: dict[str | None, list[int]] = defaultdict(list)
    for index, one in enumerate(sets):
        indices_by_instruction[one["instruction"] or None].append(index)
    for instruction, indices in indices_by_instruction.items():
        found = iter(score([sets[index] for index in indices], instruction))
        for index in indices:
            scores[index] = [next(found) for _ in sets[index]["documents"]]
    return scores
