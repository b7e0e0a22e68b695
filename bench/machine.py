"""What the figures were measured on: processor, versions, device, commit."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from bench.processes import ROOT


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "tokenizers", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in packages}


def describe_machine(device: str) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text("utf-8")) if info.exists() else None
    described: dict[str, Any] = {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }
    if device.startswith("cuda"):
        import torch

        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def commit() -> str | None:
    """The commit that runs, with a + where files differ from it; None outside a repository."""
    try:
        return subprocess.check_output(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            text=True,
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
