"""`python -m bench.accept --preset 2b`: what is to hold on a device before it is given work.

Needs torch, transformers and pillow: no Ray, no video reader, no download. Each step's result goes
into a file when it has it; the same command again does the steps that are missing or failed. The
last line is the file's JSON; exit code 1 where a step failed or was left for want of time.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.checkpoints.presets import PRESETS
from bench.machine import commit
from bench.settings import names_of

# The modules of acceptance/ in which the steps are; what is soon wrong first, what takes long last.
STEPS = {
    "environment": "start",
    "ceilings": "speed",
    "kernel": "scores",
    "start": "start",
    "real-shapes": "scores",
    "speed": "speed",
    "golden": "scores",
    "out-of-memory": "speed",
    "no-compiler": "start",
    "loading": "start",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from bench.acceptance.device import Device  # torch: seconds, which --help does not need

    file = Path(options.json or f"accept-{options.preset}.json")
    command = {"preset": options.preset, "device": options.device, "commit": commit()}
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    report = before if command.items() <= before.items() else {**command, "steps": {}}
    steps, started = report["steps"], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shardrank-accept-") as temporary:
        device = Device(options.preset, options.device, Path(temporary), steps)
        for name in options.steps:
            if "failed" not in steps.get(name, {"failed": "not done"}):
                print(f"{name}: done before", flush=True)
            elif time.monotonic() - started > options.budget_s:
                print(f"{name}: left for the next run", flush=True)
            else:
                steps[name] = _done(name, device)
                _write(file, report)
                passed = time.monotonic() - started
                print(f"{passed:6.1f} s  {name}: {json.dumps(steps[name])}", flush=True)
            gc.collect()
    report["left"] = [name for name in options.steps if name not in steps]
    report["failed"] = [name for name, each in steps.items() if "failed" in each]
    report["is_accepted"] = not report["left"] and not report["failed"]
    _write(file, report)
    print(json.dumps(report), flush=True)
    return 0 if report["is_accepted"] else 1


def _done(name: str, device: Any) -> dict[str, Any]:
    """Its figures; of a step that fails, the reason."""
    started = time.monotonic()
    try:
        module = import_module(f"bench.acceptance.{STEPS[name]}")
        figures: dict[str, Any] = getattr(module, name.replace("-", "_"))(device)
    except Exception as error:  # any library's; the other steps are of use without this one
        traceback.print_exc()
        figures = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    return figures | {"step_seconds": round(time.monotonic() - started, 1)}


def _write(file: Path, report: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.accept", description=__doc__)
    add = parser.add_argument
    add("--preset", default="2b", choices=PRESETS, help="shapes of the random model (default: 2b)")
    add("--device", default="cuda", help="cuda, or cpu to try the command itself (default: cuda)")
    add("--json", metavar="FILE", help="results of the steps (default: accept-PRESET.json)")
    add(
        "--steps",
        type=names_of(*STEPS),
        default="all",
        help="comma-separated, in order (default: all)",
    )
    add(
        "--budget-s",
        type=float,
        default=240.0,
        help="after so many seconds no further step begins (default: 240)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
