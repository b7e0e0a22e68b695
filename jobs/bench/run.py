"""The benchmark from end to end: checkpoint, workloads, rounds, tables, one line of JSON."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.bench.flops import ModelShape
from jobs.bench.machine import describe_machine
from jobs.bench.matmul import MatmulRates
from jobs.bench.pool import PeerPool
from jobs.bench.processes import run_once
from jobs.bench.results import Figures, score_faults, workload_figures
from jobs.bench.rounds import measure
from jobs.bench.settings import BenchSettings
from jobs.bench.tables import LEGEND, workload_table
from jobs.bench.work import Counted, flops_of
from jobs.bench.workloads import Drawing, build_workload


def run_bench(settings: BenchSettings, command: list[str]) -> int:
    """Prints tables, and as the last line everything as JSON. 1 where our scores are wrong."""
    progress = Progress()
    progress("building the checkpoint and the workloads")
    checkpoint = _checkpoint(settings)
    report: dict[str, Any] = {
        "command": command,
        "machine": describe_machine(settings.device),
        "model": settings.model or settings.preset,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "workloads": {},
    }
    faults: list[str] = []
    if settings.scored:
        report |= _scored(settings, checkpoint, progress)
        faults += score_faults(report["workloads"], settings.dtype)
    progress.clear()
    for fault in faults:
        print(f"WRONG: {fault}")
    report["faults"] = faults
    line = json.dumps(report)
    if settings.json_file is not None:
        Path(settings.json_file).write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 1 if faults else 0


class Progress:
    """One line on stderr, rewritten on a terminal; where it is a file, a line for each step."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started = time.monotonic()

    def __call__(self, step: str) -> None:
        line = f"{time.monotonic() - self._started:6.0f} s  {step}"
        if self._is_terminal:
            print(f"\r\x1b[2K{line[:110]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _checkpoint(settings: BenchSettings) -> Path:
    if settings.model is not None:
        return Path(settings.model).resolve()
    from jobs.bench.checkpoints import build  # torch: seconds to import

    name = f"checkpoint-{settings.preset}-{settings.seed}"
    return build(settings.preset, settings.workdir / name, settings.seed, settings.device)


def _scored(settings: BenchSettings, checkpoint: Path, progress: Progress) -> dict[str, Any]:
    from jobs.bench.counting import count

    workloads = [build_workload(name, _drawing(settings, checkpoint)) for name in settings.scored]
    counted = {workload.name: count(workload, checkpoint) for workload in workloads}
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    shape = ModelShape.of(config)
    progress("measuring the matmul rate")
    rates = _matmul_rates(settings, counted, shape)
    with PeerPool(settings, str(checkpoint)) as pool:
        contenders = measure(workloads, settings, pool, progress)
    figures: dict[str, Figures] = {}
    progress.clear()
    for workload in workloads:
        own = [c for c in contenders if c.workload.name == workload.name]
        figures[workload.name] = workload_figures(own, counted[workload.name], shape, rates)
        print(f"{workload_table(workload.name, figures[workload.name])}\n")
    print(f"{LEGEND}\n")
    return {"workloads": figures, "matmul": _matmul_json(rates)}


def _drawing(settings: BenchSettings, checkpoint: Path) -> Drawing:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return Drawing(
        seed=settings.seed,
        scale=settings.scale,
        page_tokens=settings.page_tokens,
        media=settings.workdir / "media",
        count=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    )


def _matmul_rates(
    settings: BenchSettings, counted: dict[str, Counted], shape: ModelShape
) -> MatmulRates:
    """Of all shapes that the workloads need."""
    linear: Counter[tuple[int, int]] = Counter()
    for one in counted.values():
        linear += flops_of("needed", one, shape).linear
    argument = {
        "shapes": sorted(linear),
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": settings.threads,
    }
    log = settings.workdir / "logs" / "matmul.log"
    answer = run_once("jobs.bench.matmul", argument, settings.threads, log)
    return MatmulRates(
        {
            (inputs, outputs): {int(rows): rate for rows, rate in by_rows.items()}
            for inputs, outputs, by_rows in answer
        }
    )


def _matmul_json(rates: MatmulRates) -> list[dict[str, Any]]:
    return [
        {"inputs": shape[0], "outputs": shape[1], "gflops_per_s_by_rows": by_rows}
        for shape, by_rows in (
            (shape, {rows: round(rate / 1e9, 1) for rows, rate in by_rows.items()})
            for shape, by_rows in rates.rates.items()
        )
    ]
