"""The benchmark from end to end: checkpoint, workloads, rounds, tables, one line of JSON."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.bound.flops import ModelShape
from bench.bound.matmul import rates_of_machine
from bench.bound.work import count
from bench.checkpoints.build import build
from bench.contenders import measure
from bench.machine import describe_machine
from bench.processes import PeerFailed
from bench.profiling import measure_preprocessing, measure_profile
from bench.progress import progress
from bench.results import LEGEND, Part, score_faults, workload_figures, workload_table
from bench.settings import SCORED, BenchSettings
from bench.workloads import Drawing, build_workload


def run_bench(settings: BenchSettings, command: list[str]) -> int:
    """Prints tables, and as the last line everything as JSON. 1 where our scores are wrong."""
    progress("building the checkpoint and the workloads")
    report: dict[str, Any] = {
        "command": command,
        "machine": describe_machine(settings.device),
        "model": settings.model or settings.preset,
        **{name: getattr(settings, name) for name in ("dtype", "threads", "scale", "seed")},
        "engine": settings.engine,
    }
    faults: list[str] = []
    for name, part in _parts(settings):
        try:
            report[name], text, wrong = part()
        except PeerFailed as failure:
            report[name], text, wrong = None, "", [f"{name}: {failure}"]
        print(text, flush=True)
        faults += wrong
    for fault in faults:
        print(f"WRONG: {fault}")
    line = json.dumps(report | {"faults": faults})
    if settings.json is not None:
        Path(settings.json).write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 1 if faults else 0


def _parts(settings: BenchSettings) -> Iterator[tuple[str, Callable[[], Part]]]:
    """What the settings ask for, by its name in the JSON object."""
    checkpoint = Path(settings.model or settings.workdir / f"{settings.preset}-{settings.seed}")
    if settings.model is None:
        build(settings.preset, checkpoint, settings.seed, settings.device)
    sizes = {name: getattr(settings, name) for name in ("seed", "scale", "page_tokens")}
    drawing = Drawing.of(checkpoint.resolve(), settings.workdir / "media", **sizes)
    given = (drawing, settings, checkpoint.resolve())
    if scored := [name for name in settings.workloads if name in SCORED]:
        yield "workloads", partial(_workloads, scored, *given)
    if settings.profile is not None:
        yield "profile", partial(_profile, *given)
    for name in ("job", "memory"):
        if name in settings.workloads:
            yield name, partial(_through_ray, name, *given)
    if "preprocess" in settings.workloads:
        yield "preprocess", partial(measure_preprocessing, settings, checkpoint.resolve())


def _workloads(
    names: Sequence[str], drawing: Drawing, settings: BenchSettings, checkpoint: Path
) -> Part:
    workloads = [build_workload(name, drawing) for name in names]
    contenders = measure(workloads, settings, checkpoint)
    counted = {each.name: count(each, checkpoint) for each in workloads}
    shape = ModelShape.of(checkpoint)
    rates = rates_of_machine(shape, [*counted.values()], settings, checkpoint)
    figures = {
        name: workload_figures(
            [each for each in contenders if each.workload.name == name], one, shape, rates
        )
        for name, one in counted.items()
    }
    tables = [workload_table(name, one) for name, one in figures.items()]
    text = "\n\n".join([*tables, LEGEND]) + "\n"
    return figures, text, score_faults(figures, settings.dtype)


def _profile(drawing: Drawing, settings: BenchSettings, checkpoint: Path) -> Part:
    assert settings.profile is not None
    workload = build_workload(settings.profile, drawing)
    counted = count(workload, checkpoint)
    rates = rates_of_machine(ModelShape.of(checkpoint), [counted], settings, checkpoint)
    return measure_profile(workload, settings, checkpoint, rates)


def _through_ray(name: str, drawing: Drawing, settings: BenchSettings, checkpoint: Path) -> Part:
    """A bare machine has only the engine's packages."""
    if not all(importlib.util.find_spec(package) for package in ("ray", "pyarrow", "typer")):
        return None, f"{name}: not measured: Ray is not installed here\n", []
    if not settings.has_files:
        return None, f"{name}: not measured: it reads weights from files: give --model\n", []
    from bench.job import measure_job, measure_memory

    run = measure_job if name == "job" else measure_memory
    return run(drawing, settings, checkpoint)
