"""The benchmark from end to end: checkpoint, workloads, rounds, tables, one line of JSON."""

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.flops import ModelShape
from bench.machine import describe_machine
from bench.matmul import MatmulRates, rates_of_machine
from bench.pool import PeerPool
from bench.processes import PeerFailed
from bench.progress import Progress
from bench.results import score_faults, workload_figures
from bench.rounds import measure
from bench.settings import MAX_SCORE_DIFFERENCE, BenchSettings
from bench.tables import LEGEND, workload_table
from bench.work import Counted, flops_of
from bench.workloads import Drawing, build_workload


def run_bench(settings: BenchSettings, command: list[str]) -> int:
    """Prints tables, and as the last line everything as JSON. 1 where our scores are wrong."""
    progress = Progress()
    progress("building the checkpoint and the workloads")
    report: dict[str, Any] = {
        "command": command,
        "machine": describe_machine(settings.device),
        "model": settings.model or settings.preset,
        "dtype": settings.dtype,
        "threads": settings.threads,
        "scale": settings.scale,
        "seed": settings.seed,
        "engine": settings.engine,
    }
    faults: list[str] = []
    for name, part in _Bench(settings, progress).parts():
        try:
            figures, text, wrong = part()
        except PeerFailed as failure:
            figures, text, wrong = None, "", [f"{name}: {failure}"]
        progress.clear()
        print(text, flush=True)
        report[name] = figures
        faults += wrong
    for fault in faults:
        print(f"WRONG: {fault}")
    line = json.dumps(report | {"faults": faults})
    if settings.json_file is not None:
        Path(settings.json_file).write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 1 if faults else 0


_Part = tuple[Any, str, list[str]]
"""Figures for the JSON object, text, and what is wrong."""


class _Bench:
    """The checkpoint and what is measured on it."""

    def __init__(self, settings: BenchSettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._checkpoint = _checkpoint(settings)
        self._drawing = _drawing(settings, self._checkpoint)

    def parts(self) -> Iterator[tuple[str, Callable[[], _Part]]]:
        """What the settings ask for, by its name in the JSON object."""
        settings = self._settings
        if settings.scored:
            yield "workloads", self.workloads
        if settings.profile is not None:
            yield "profile", self.profile
        for name, part in (("job", self.job), ("memory", self.memory)):
            if name in settings.workloads:
                lacking = self._lacking_for_job()
                yield name, partial(_not_measured, name, lacking) if lacking else part
        if "preprocess" in settings.workloads:
            yield "preprocess", self.preprocess

    def workloads(self) -> _Part:
        from bench.counting import count  # torch: seconds to import

        settings = self._settings
        workloads = [build_workload(name, self._drawing) for name in settings.scored]
        with PeerPool(settings, str(self._checkpoint)) as pool:
            contenders = measure(workloads, settings, pool, self._progress)
        counted = {each.name: count(each, self._checkpoint) for each in workloads}
        shape = self._shape()
        rates = self._rates(counted.values())
        figures = {
            name: workload_figures(
                [each for each in contenders if each.workload.name == name], one, shape, rates
            )
            for name, one in counted.items()
        }
        tables = [workload_table(name, one) for name, one in figures.items()]
        text = "\n\n".join([*tables, LEGEND]) + "\n"
        return figures, text, score_faults(figures, settings.dtype)

    def profile(self) -> _Part:
        from bench.counting import count
        from bench.profiling import linear_summary, profile, profile_table

        name = self._settings.profile
        assert name is not None
        workload = build_workload(name, self._drawing)
        rates = self._rates([count(workload, self._checkpoint)])
        self._progress(f"profiling ours on {name}")
        profiled = profile(workload, self._settings, self._checkpoint)
        figures: dict[str, Any] = {"workload": name, "matmul": rates.described()}
        figures |= linear_summary(profiled, rates)
        return figures, profile_table(name, profiled, rates), []

    def job(self) -> _Part:
        from bench.job import job_lines, measure_job

        workload = build_workload("text", self._drawing)
        figures = measure_job(workload, self._settings, self._checkpoint, self._progress)
        wrong = []
        is_float32 = self._settings.dtype == "float32"
        if is_float32 and not figures["max_score_difference"] <= MAX_SCORE_DIFFERENCE:
            wrong = [f"job: scores are {figures['max_score_difference']:.1e} off the bare engine's"]
        return figures, job_lines(figures), wrong

    def memory(self) -> _Part:
        from bench.job import measure_memory, memory_lines

        figures = measure_memory(self._drawing, self._settings, self._checkpoint, self._progress)
        return figures, memory_lines(figures), []

    def preprocess(self) -> _Part:
        from bench.preprocessing import measure_preprocessing, preprocessing_lines

        self._progress("preprocess: pages on one core")
        figures = measure_preprocessing(self._settings, self._checkpoint)
        return figures, preprocessing_lines(figures), []

    def _lacking_for_job(self) -> str | None:
        if not _has_job():  # a bare machine has only the engine's packages
            return "Ray is not installed here"
        return None if self._settings.has_files else "it reads weights from files: give --model"

    def _shape(self) -> ModelShape:
        config = (self._checkpoint / "config.json").read_text(encoding="utf-8")
        return ModelShape.of(json.loads(config))

    def _rates(self, counted: Iterable[Counted]) -> MatmulRates:
        """Of all shapes that the workloads need."""
        self._progress("measuring the matmul rate")
        linear: Counter[tuple[int, int]] = Counter()
        for one in counted:
            linear += flops_of("needed", one, self._shape()).linear
        return rates_of_machine(sorted(linear), self._settings)


def _has_job() -> bool:
    return all(importlib.util.find_spec(name) for name in ("ray", "pyarrow", "typer"))


def _not_measured(name: str, lacking: str) -> _Part:
    return None, f"{name}: not measured: {lacking}\n", []


def _checkpoint(settings: BenchSettings) -> Path:
    if settings.model is not None:
        return Path(settings.model).resolve()
    from bench.checkpoints import build  # torch: seconds to import

    name = f"checkpoint-{settings.preset}-{settings.seed}"
    return build(settings.preset, settings.workdir / name, settings.seed, settings.device)


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
