"""Makes torchvision importable where its own binary cannot be loaded.

A torchvision that was built for CUDA does not load beside a CPU build of torch, and its Python
part then fails over operators that nothing here calls. transformers' processor of Qwen3-VL needs
that Python part.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

_kept: list[Any] = []
"""Operators live as long as their library object; a temporary directory, until the exit."""
_OPERATORS = ("nms", "qnms")
_AT_START = "import bench.peers.torchvision_operators as it\nit.declare_on_import()\n"


def declare_missing_operators() -> None:
    """Before `import torchvision`. Does nothing where torchvision is missing or whole."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    try:
        for binary in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(binary))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


def declare_in_child_processes() -> None:
    """The same in every Python that this process starts, when and if it imports torchvision."""
    folder = tempfile.TemporaryDirectory(prefix="shardrank-peer-")
    _kept.append(folder)
    Path(folder.name, "sitecustomize.py").write_text(_AT_START, encoding="utf-8")
    inherited = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([folder.name, *inherited])


def declare_on_import() -> None:
    sys.meta_path.insert(0, _BeforeTorchvision())


class _BeforeTorchvision:
    """Finds nothing, and only uses that it is asked first."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_operators()
