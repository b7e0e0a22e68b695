"""`-m bench.scale`: a job of a million pairs, its memory as it goes, and its proof.

The model is a stand-in that takes a fixed time a pair, so that what is seen is the job's own. Exit
code 1 if memory grows in the last three quarters of the job, or a row is missing. The pages of
Ray's object store are counted apart: a process that reads more of it maps more of the same memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.checkpoints import build
from bench.job import is_worker
from bench.peers.usage import descendants, status_bytes
from bench.processes import ROOT
from bench.progress import Progress
from bench.stand_in import make_engine
from shardrank.actors.config import RerankerConfig
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.rerank import JobOptions, rerank

NUM_DOCUMENTS = 50
NUM_FILES = 8
ROW_GROUP = 200
MAX_GROWTH = 0.10
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_SAMPLE_EVERY_S = 1.0


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.run is not None:
        _run(options.run, options.pair_us / 1e6)
        return 0
    progress = Progress()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(options.workdir or temporary)
        figures = _measure(workdir, options, progress)
    progress.clear()
    print(_lines(figures))
    print(json.dumps(figures))
    return 0 if figures["is_exact"] and figures["growth"] <= MAX_GROWTH else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    add = parser.add_argument
    add("--pairs", type=int, default=1_000_000, help="default: %(default)s")
    add("--pair-us", type=float, default=100.0, help="the stand-in's time a pair (%(default)s us)")
    add("--workdir", help="keeps input and output (default: none)")
    add("--run", nargs=3, metavar=("INPUT", "OUTPUT", "MODEL"), help=argparse.SUPPRESS)
    return parser


def _run(places: Sequence[str], pair_s: float) -> None:
    """The driver, in a process of its own; places: input, output and model."""
    input, output, model = places
    config = RerankerConfig(model=model, device="cpu", num_threads=1)
    rerank(JobOptions(output, InputOptions(input)), config, make_engine(pair_s))


def _measure(workdir: Path, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    model = build("tiny", workdir / "model")
    progress(f"writing {options.pairs:,} pairs")
    sets, output = workdir / "sets", workdir / "out"
    num_pairs = write_sets(sets, options.pairs)
    command = [sys.executable, "-m", "bench.scale", f"--pair-us={options.pair_us}"]
    started = time.monotonic()
    with (workdir / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--run", str(sets), str(output), str(model)], stderr=log, cwd=ROOT
        )
        try:
            samples = list(_samples(process, output / "scores", num_pairs, progress))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise SystemExit((workdir / "log").read_text(errors="replace")[-2_000:])
    seconds = time.monotonic() - started
    progress("verifying")
    return {
        "pairs": num_pairs,
        "pair_us": options.pair_us,
        "units": len(list((output / "scores").glob("part-*.parquet"))),
        "seconds": round(seconds, 1),
        "pairs_per_s": round(num_pairs / seconds, 1),
        "memory_mb": _by_share(samples),
        "growth": round(_growth(samples), 4),
        "is_exact": verify_output(str(output)).num_pairs == num_pairs,
    }


def write_sets(directory: Path, num_pairs: int) -> int:
    """Candidate sets of short texts, a row group at a time; returns how many pairs they have."""
    directory.mkdir(parents=True, exist_ok=True)
    num_queries = max(1, num_pairs // NUM_DOCUMENTS)
    candidate = pa.struct([("doc_id", pa.string()), ("doc", pa.string())])
    columns = [
        ("query_id", pa.int64()),
        ("query", pa.string()),
        ("candidates", pa.list_(candidate)),
    ]
    schema = pa.schema(columns)
    bounds = [num_queries * file // NUM_FILES for file in range(NUM_FILES + 1)]
    for file, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        with pq.ParquetWriter(directory / f"{file}.parquet", schema) as writer:
            for start in range(low, high, ROW_GROUP):
                rows = [_row(number) for number in range(start, min(start + ROW_GROUP, high))]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return num_queries * NUM_DOCUMENTS


def _row(number: int) -> dict[str, Any]:
    candidates = [
        {"doc_id": f"{number}-{place}", "doc": f"document {place} of query {number} and its words"}
        for place in range(NUM_DOCUMENTS)
    ]
    return {"query_id": number, "query": f"the words of query {number}", "candidates": candidates}


@dataclass(frozen=True, slots=True)
class Sample:
    """The share of the pairs that are written, and bytes: of the driver, of the largest worker, and
    of the object store that one of them has mapped at most.
    """

    share: float
    driver: int
    worker: int
    store: int


def own_bytes(pid: int) -> int:
    """What a process has in memory, without the object store's pages."""
    return max(0, status_bytes(pid, "VmRSS") - status_bytes(pid, "RssShmem"))


def _samples(
    process: "subprocess.Popen[bytes]", scores: Path, num_pairs: int, progress: Progress
) -> Iterator[Sample]:
    """Once a second until the driver ends; the share is of rows in written files."""
    known: dict[Path, int] = {}
    while process.poll() is None:
        for path in scores.glob("part-*.parquet"):
            if path not in known:
                known[path] = pq.read_metadata(path).num_rows
        done = sum(known.values())
        workers = [pid for pid in descendants(process.pid) if is_worker(pid)]
        driver = own_bytes(process.pid)
        store = max(status_bytes(pid, "RssShmem") for pid in [process.pid, *workers])
        yield Sample(done / num_pairs, driver, max(map(own_bytes, workers), default=0), store)
        progress(f"{done:,} of {num_pairs:,} pairs, driver {driver >> 20:,} MB")
        time.sleep(_SAMPLE_EVERY_S)


def _by_share(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """The most that was held until each share was written."""
    found = {}
    for share in SHARES:
        until = [sample for sample in samples if sample.share <= share]
        found[f"{share:.0%}"] = {
            name: max((getattr(sample, name) for sample in until), default=0) >> 20
            for name in ("driver", "worker", "store")
        }
    return found


def _growth(samples: Sequence[Sample]) -> float:
    """From the first quarter's most to the whole job's, of driver or worker, the larger."""
    first = [sample for sample in samples if sample.share <= 0.25]
    growths = []
    for name in ("driver", "worker"):
        before = max((getattr(sample, name) for sample in first), default=0)
        growths.append(max(getattr(sample, name) for sample in samples) / max(before, 1) - 1)
    return max(growths)


def _lines(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['pairs']:,} pairs in {figures['units']:,} units: {figures['seconds']:,.0f} s, "
        f"{figures['pairs_per_s']:,.0f} pairs/s at {figures['pair_us']:g} us a pair; "
        + ("every pair has exactly one row" if figures["is_exact"] else "ROWS ARE MISSING")
    ]
    for share, memory in figures["memory_mb"].items():
        lines.append(
            f"  until {share:>4}: driver {memory['driver']:,} MB, worker {memory['worker']:,} MB; "
            f"object store {memory['store']:,} MB"
        )
    return "\n".join([*lines, f"  growth after the first quarter: {figures['growth']:.1%}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
