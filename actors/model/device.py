"""The device: which one, and arrays and compiled code for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device. The copy runs behind the work already queued there.

    The caller must not change the array afterwards: on a CPU the tensor shares its memory.
    """
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host. Of a GPU's tensor it is only there when the queued work is done."""
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def maybe_compiled(function: Callable[..., Any], is_compiled: bool) -> Callable[..., Any]:
    """Compiled for any number of tokens, on first use; or as it is."""
    return torch.compile(function, dynamic=True) if is_compiled else function


def choose_device(name: str) -> torch.device:
    """The device of a name, "auto" being CUDA where there is one. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def compiles(choice: bool | None, device: torch.device) -> bool:
    """On CUDA unless told otherwise. Not timed yet on either kind of device."""
    return device.type == "cuda" if choice is None else choice
