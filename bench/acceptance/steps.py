"""The steps, in order: what is soon wrong first, what takes long last."""

from collections.abc import Callable

from bench.acceptance.device import Device, Figures
from bench.acceptance.scores import golden, kernel, real_shapes
from bench.acceptance.speed import ceilings, out_of_memory, speed
from bench.acceptance.start import environment, loading, no_compiler, start

STEPS: dict[str, Callable[[Device], Figures]] = {
    "environment": environment,
    "ceilings": ceilings,
    "kernel": kernel,
    "start": start,
    "real-shapes": real_shapes,
    "speed": speed,
    "golden": golden,
    "out-of-memory": out_of_memory,
    "no-compiler": no_compiler,
    "loading": loading,
}
