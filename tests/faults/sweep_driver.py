"""The command line with the sweep's engine: `python sweep_driver.py LOG rerank ...`.

A process of its own, so that it can be killed; all else is as `shardrank rerank` does it. Workers
on this machine find the engine where the script is.
"""

import sys
from pathlib import Path

import sweep_engine

import jobs.rerank
from jobs.cli import main

if __name__ == "__main__":
    log = Path(sys.argv[1])
    jobs.rerank._own_engine = lambda: sweep_engine.make_engine(log)
    sys.exit(main(sys.argv[2:]))
