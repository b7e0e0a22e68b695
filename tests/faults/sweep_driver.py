"""The command line with the sweep's engine and buckets: `sweep_driver LOG rerank ...`.

A process of its own, so that it can be killed; all else is as `shardrank rerank` does it. Workers
on this machine find the engine where it was started.
"""

import sys
from functools import partial
from pathlib import Path

from shardrank.cli import main
from shardrank.jobs import rerank
from shardrank.jobs.units.plan import plan_units
from tests.faults import sweep_engine

if __name__ == "__main__":
    log = Path(sys.argv[1])
    rerank.own_engine = lambda: sweep_engine.make_engine(log)
    rerank.plan_units = partial(plan_units, bucket_pairs=sweep_engine.BUCKET_PAIRS)
    sys.exit(main(sys.argv[2:]))
