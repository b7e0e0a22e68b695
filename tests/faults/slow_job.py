"""The command line with a stand-in that takes a fixed time a pair, as a device would, so that what
is seen is the job's own: `slow_job LOG SECONDS_A_PAIR rerank ...`.

LOG gets a line for each call: when it began, when it ended, by whom, and how many pairs.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from shardrank.actors.data import PairScore
from shardrank.actors.prepared import PreparedSet
from shardrank.cli import main
from shardrank.jobs import rerank
from shardrank.jobs.run.engine import Engine
from tests.support.standin import StandInPreprocessor, StandInScorer


class SlowScorer(StandInScorer):
    def __init__(self, log: Path, pair_s: float, config: Any) -> None:
        super().__init__(config)
        self._log, self._pair_s = log, pair_s

    def score(self, sets: list[PreparedSet], progressed: Any) -> list[list[PairScore]]:
        began, num_pairs = time.time(), sum(each.num_pairs for each in sets)
        time.sleep(self._pair_s * num_pairs)
        with self._log.open("a") as stream:
            stream.write(f"{began} {time.time()} {os.getpid()} {num_pairs}\n")
        return super().score(sets, progressed)


if __name__ == "__main__":
    from tests.faults import slow_job  # by whose name the workers find the class

    scorer = partial(slow_job.SlowScorer, Path(sys.argv[1]), float(sys.argv[2]))
    rerank.own_engine = lambda: Engine(StandInPreprocessor, scorer)
    sys.exit(main(sys.argv[3:]))
