"""The device: which one, and arrays and compiled code for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def to_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The array on the device. The copy runs behind the work already queued there.

    The caller must not change the array afterwards: on a CPU the tensor shares its memory.
    """
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return _uploaded(array, device) if device.type == "cuda" else array.to(device)


def _uploaded(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host. Of a GPU's tensor it is only there when the queued work is done."""
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


class HostCopy:
    """A copy on the host that arrives as soon as the work already queued on the device is done, and
    is read without waiting for what is queued after it.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = to_host(tensor)
        self._arrived = torch.cuda.Event(blocking=True) if tensor.device.type == "cuda" else None
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def rows(self) -> list[np.ndarray]:
        """Its rows, each an array, or of (N,) a number. Waits for it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [*self._copy.numpy()]


_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "ErrorMemoryAllocation")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that the device has too little: not only its allocator says so, but
    also cuBLAS (CUBLAS_STATUS_ALLOC_FAILED), cuDNN, and whatever launches a kernel.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


def maybe_compiled(function: Callable[..., Any], is_compiled: bool) -> Callable[..., Any]:
    """Compiled for any number of rows, on first use; or as it is.

    Of the tensors that are arguments of their own the first dimension alone is symbolic, and of
    weights, which come in tuples, none: with symbolic widths Inductor divides by them in every
    thread, and makes two kernels of norm and rotation.
    """
    if not is_compiled:
        return function
    compiled = torch.compile(function)

    def of_any_length(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        return compiled(*arguments)

    return of_any_length


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
