"""What the machine has, and how a scorer starts on it."""

import inspect
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import torch

from bench.acceptance.device import Device, Figures, check, logits_of, num_graphs, prepared_sets
from bench.checkpoints.presets import PRESETS
from bench.checkpoints.random_weights import SEED_FILE, random_model
from bench.machine import versions
from bench.processes import ROOT
from shardrank.actors import Reranker

PROBE_S = 20.0  # what the endpoint's health probe waits for: no first request may take longer


def environment(device: Device) -> Figures:
    from torch.nn.attention.varlen import varlen_attn

    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    figures: Figures = {
        "python": platform.python_version(),
        "versions": versions(),
        "c_compiler": shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc"),
        "has_python_h": header.is_file(),
        "varlen_attn": list(inspect.signature(varlen_attn).parameters),
        "cores": os.cpu_count(),
    }
    if device.is_cuda:
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "gpu": torch.cuda.get_device_name(),
            "capability": torch.cuda.get_device_capability(),
            "cuda": torch.version.cuda,
            "free_bytes": free,
            "total_bytes": total,
        }
    return figures


def start(device: Device) -> Figures:
    """What the warm-up takes, and what the endpoint's first requests wait for after it."""
    text, pages = device.workload("text", 0.7), device.workload("pages", 0.05)
    begun = time.perf_counter()
    reranker = device.warm
    figures = {"weights_and_warm_up_s": time.perf_counter() - begun}
    before = num_graphs()
    for name, part in {
        "probe": text.head(1, 1),
        "list": text.head(1, 50),
        "page": pages.head(1, 1),
    }.items():
        prepared = prepared_sets(reranker, part)
        figures[f"first_{name}_s"] = device.seconds(
            lambda prepared=prepared: logits_of(reranker, prepared),  # type: ignore[misc]
            repeats=1,
            warm_ups=0,
        )
    figures["compiled_after_the_warm_up"] = num_graphs() - before
    slow = [name for name, each in figures.items() if name.startswith("first") and each > PROBE_S]
    check(not slow, f"{slow} take longer than the probe's {PROBE_S:.0f} s: {figures}")
    return figures


def no_compiler(device: Device) -> Figures:
    """Without a C compiler the warm-up says so, and what follows runs as it is."""
    model = str(ROOT / "tests" / "golden" / "tiny")
    code = (
        "import logging, sys; logging.basicConfig(level='WARNING', stream=sys.stdout)\n"
        "from shardrank.actors import Reranker\n"
        f"reranker = Reranker({model!r}, device={device.name!r}, compile=True)\n"
        "reranker.scorer.warm_up()\n"
        "print(reranker.scorer.is_compiled, reranker.score('red', ['a red planet']))\n"
    )
    with tempfile.TemporaryDirectory() as empty:
        environment = dict(os.environ, CC="/no/compiler", CXX="/no/compiler", PYTHONPATH=str(ROOT))
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_HOME"):
            environment[name] = empty
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    lines = ended.stdout.splitlines()
    said = [line for line in lines if "torch.compile fails here" in line]
    check(ended.returncode == 0, (ended.stderr.strip().splitlines() or ["no message"])[-1])
    # A toolchain that brings its own compiler is none that is missing.
    check(lines[-1].startswith("True" if not said else "False"), ended.stdout[-500:])
    return {"said": said}


def loading(device: Device) -> Figures:
    """The seconds from files to a scorer, where there is room for the files."""
    dtype: torch.dtype = getattr(torch, PRESETS[device.preset].dtype)
    model = random_model(device.checkpoint, device.device, dtype)
    size = sum(weight.nbytes for weight in model.parameters())
    with tempfile.TemporaryDirectory() as temporary:
        if shutil.disk_usage(temporary).free < 3 * size or size > 8e9:
            return {"skipped": f"{size / 1e9:.0f} GB are not written here"}
        model.save_pretrained(temporary)
        shutil.copytree(device.checkpoint, temporary, dirs_exist_ok=True)
        Path(temporary, SEED_FILE).unlink()
        del model
        device.empty()
        started = time.perf_counter()
        Reranker(temporary, device=device.name, dtype="bfloat16", compile=False)
        device.synchronize()
        return {"bytes": size, "seconds": time.perf_counter() - started}
