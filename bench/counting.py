"""A workload's pairs as the model reads them, prepared once to count its work."""

from pathlib import Path

import numpy as np

from bench.work import Counted, Tokens
from bench.workloads import Workload
from shardrank.actors import CandidateSet, RerankerConfig
from shardrank.actors.packing import sharing_keys
from shardrank.actors.prepared import PreparedPair, PreparedSet
from shardrank.actors.preprocessor import Preprocessor


def count(workload: Workload, checkpoint: Path) -> Counted:
    """Raises the first pair's error: a workload of the benchmark has none."""
    preprocessor = Preprocessor(RerankerConfig(model=str(checkpoint)))
    numbers: dict[bytes, int] = {}
    patches: list[int] = []
    sets: list[list[Tokens]] = []
    for one in workload.sets:
        prepared = preprocessor.prepare(
            CandidateSet.parse(one["query"], one["documents"], one["instruction"])
        )
        for visual in prepared.visuals:
            if numbers.setdefault(visual.key, len(patches)) == len(patches):
                patches.append(4 * visual.num_tokens)
        sets.append([_tokens(pair, prepared, numbers) for pair in prepared.pairs])
    return Counted(sets, patches)


def _tokens(
    pair: PreparedPair | Exception, prepared: PreparedSet, numbers: dict[bytes, int]
) -> Tokens:
    if isinstance(pair, Exception):
        raise pair
    keys = sharing_keys(pair)
    table = np.array([numbers[visual.key] for visual in prepared.visuals] or [0])
    return np.where(keys < 0, -1 - table[np.clip(-1 - keys, 0, len(table) - 1)], keys)
