"""The benchmark from end to end: checkpoint, workloads, rounds, tables, one line of JSON."""

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.bound.flops import LinearShape, ModelShape
from bench.bound.matmul import MatmulRates, rates_of_machine
from bench.bound.work import Counted, count, flops_of
from bench.checkpoints.build import build
from bench.contenders import measure
from bench.machine import describe_machine
from bench.preprocessing import measure_preprocessing, preprocessing_lines
from bench.processes import PeerFailed
from bench.profiling import linear_summary, profile, profile_table
from bench.progress import Progress
from bench.results import LEGEND, score_faults, workload_figures, workload_table
from bench.settings import MAX_SCORE_DIFFERENCE, OURS, BenchSettings
from bench.workloads import Drawing, build_workload

Part = tuple[Any, str, list[str]]
"""Figures for the JSON object, text, and what is wrong."""


def run_bench(settings: BenchSettings, command: list[str]) -> int:
    """Prints tables, and as the last line everything as JSON. 1 where our scores are wrong."""
    progress = Progress()
    progress("building the checkpoint and the workloads")
    report: dict[str, Any] = {
        "command": command,
        "machine": describe_machine(settings.device),
        "model": settings.model or settings.preset,
        **{name: getattr(settings, name) for name in ("dtype", "threads", "scale", "seed")},
        "engine": settings.engine,
    }
    faults: list[str] = []
    for name, part in _Bench(settings, progress).parts():
        try:
            report[name], text, wrong = part()
        except PeerFailed as failure:
            report[name], text, wrong = None, "", [f"{name}: {failure}"]
        progress.clear()
        print(text, flush=True)
        faults += wrong
    for fault in faults:
        print(f"WRONG: {fault}")
    line = json.dumps(report | {"faults": faults})
    if settings.json is not None:
        Path(settings.json).write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 1 if faults else 0


class _Bench:
    """The checkpoint and what is measured on it."""

    def __init__(self, settings: BenchSettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        if settings.model is not None:
            self._checkpoint = Path(settings.model).resolve()
        else:
            folder = settings.workdir / f"checkpoint-{settings.preset}-{settings.seed}"
            self._checkpoint = build(settings.preset, folder, settings.seed, settings.device)
        self._shape = ModelShape.of(self._checkpoint)
        self._drawing = Drawing.of(
            self._checkpoint,
            settings.workdir / "media",
            seed=settings.seed,
            scale=settings.scale,
            page_tokens=settings.page_tokens,
        )

    def parts(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        """What the settings ask for, by its name in the JSON object."""
        settings = self._settings
        if settings.scored:
            yield "workloads", self._workloads
        if settings.profile is not None:
            yield "profile", self._profile
        others = {"job": self._job, "memory": self._memory, "preprocess": self._preprocess}
        yield from ((name, part) for name, part in others.items() if name in settings.workloads)

    def _workloads(self) -> Part:
        settings = self._settings
        workloads = [build_workload(name, self._drawing) for name in settings.scored]
        contenders = measure(workloads, settings, self._checkpoint, self._progress)
        counted = {each.name: count(each, self._checkpoint) for each in workloads}
        rates = self._rates(counted.values())
        figures = {
            name: workload_figures(
                [each for each in contenders if each.workload.name == name], one, self._shape, rates
            )
            for name, one in counted.items()
        }
        tables = [workload_table(name, one) for name, one in figures.items()]
        text = "\n\n".join([*tables, LEGEND]) + "\n"
        return figures, text, score_faults(figures, settings.dtype)

    def _profile(self) -> Part:
        name = self._settings.profile
        assert name is not None
        workload = build_workload(name, self._drawing)
        rates = self._rates([count(workload, self._checkpoint)])
        self._progress(f"profiling ours on {name}")
        profiled = profile(workload, self._settings, self._checkpoint)
        figures: dict[str, Any] = {"workload": name, "matmul": rates.described()}
        figures |= linear_summary(profiled, rates)
        return figures, profile_table(name, profiled, rates), []

    def _job(self) -> Part:
        if lacking := self._lacking_for_job():
            return None, f"job: not measured: {lacking}\n", []
        from bench.job import job_lines, measure_job

        text = build_workload("text", self._drawing)
        figures = measure_job(text, self._settings, self._checkpoint, self._progress)
        wrong, difference = [], figures["max_score_difference"]
        if self._settings.dtype == "float32" and not difference <= MAX_SCORE_DIFFERENCE:
            wrong = [f"job: scores are {difference:.1e} off the bare engine's"]
        return figures, job_lines(figures), wrong

    def _memory(self) -> Part:
        if lacking := self._lacking_for_job():
            return None, f"memory: not measured: {lacking}\n", []
        from bench.job import measure_memory, memory_lines

        figures = measure_memory(self._drawing, self._settings, self._checkpoint, self._progress)
        return figures, memory_lines(figures), []

    def _preprocess(self) -> Part:
        self._progress("preprocess: pages on one core")
        figures = measure_preprocessing(self._settings, self._checkpoint)
        return figures, preprocessing_lines(figures), []

    def _lacking_for_job(self) -> str | None:
        """A bare machine has only the engine's packages."""
        if not all(importlib.util.find_spec(name) for name in ("ray", "pyarrow", "typer")):
            return "Ray is not installed here"
        return None if self._settings.has_files else "it reads weights from files: give --model"

    def _rates(self, counted: Iterable[Counted]) -> MatmulRates:
        """The rates of all shapes that the workloads need."""
        self._progress("measuring the matmul rate")
        linear: Counter[LinearShape] = Counter()
        for one in counted:
            linear += flops_of("needed", one, self._shape).linear
        settings = self._settings
        peer = settings.of_peer(OURS, self._checkpoint)
        return rates_of_machine(sorted(linear), peer, settings.log("matmul"))
