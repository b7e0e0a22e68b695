"""Which step the benchmark is at, on stderr."""

import sys
import time

_STARTED = time.monotonic()


def progress(step: str) -> None:
    print(f"{time.monotonic() - _STARTED:6.0f} s  {step}", file=sys.stderr, flush=True)
