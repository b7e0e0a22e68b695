"""A LoRA or DoRA adapter that PEFT saved, merged into the weights that it was trained on.

Source: peft 0.21 (lora/layer.py, lora/dora.py, tuners_utils.py), which this equals in float32.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shardrank.actors.model.architecture import EMBEDDING, HEAD, LABELS
from shardrank.actors.model.linear import Weights

_PREFIX = "base_model.model."
_KINDS = re.compile(r"^(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "monteclora_config": None,
    "velora_config": None,
}
"""Settings that change what is computed, and the value that is merged."""
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin training after which the base is another one too."""


class Adapter:
    """An adapter's folder. Raises ValueError on one that is not merged here, naming what it has.

    own_name: of a tensor as the checkpoint's class has it, the engine's name.
    """

    def __init__(self, folder: Path, own_name: Callable[[str], str]) -> None:
        self._folder = folder
        self._config = _read_config(folder / "adapter_config.json")
        self._factors: dict[str, dict[str, torch.Tensor]] = {}
        self._modules: dict[str, str] = {}  # by the engine's name, PEFT's
        self._whole: Weights = {}
        try:
            tensors = load_file(folder / "adapter_model.safetensors")
        except Exception as error:  # of several kinds, for a file that is not what it is named
            raise ValueError(f"{folder} cannot be loaded: {error}") from error
        for key, tensor in tensors.items():
            name = key.removeprefix(_PREFIX)
            if found := _KINDS.match(name):
                module, kind = found.groups()
                own = own_name(f"{module}.weight")
                self._modules[own] = module
                self._factors.setdefault(own, {})[kind] = tensor
            else:
                self._whole[own_name(name)] = tensor

    @property
    def num_labels(self) -> int | None:
        """The rows of the classifier that it has, if it has one."""
        return len(self._whole[LABELS]) if LABELS in self._whole else None

    @property
    def has_head(self) -> bool:
        """Whether the head is the adapter's own, not the embeddings."""
        return HEAD in self._whole

    def merge(self, weights: Weights, dtype: torch.dtype, *, is_tied: bool) -> None:
        """Put the merged weights, made in float32, in the place of the base's. Raises ValueError
        where the adapter is of another model.
        """
        changed = self._factors.keys() | self._whole.keys()
        if is_tied and not self.has_head and changed & {EMBEDDING, HEAD}:
            raise ValueError(f"{self._folder} changes embeddings that are the head too")
        for name, factors in self._factors.items():
            base = weights.get(name)
            if base is None:
                raise ValueError(f"{self._folder} adapts {name}, which the model does not have")
            weights[name] = self._merged(name, base.float(), factors).to(dtype)
        for name, tensor in self._whole.items():
            like = weights.get(EMBEDDING if name == HEAD else name)
            if like is None and name != LABELS:
                raise ValueError(f"{self._folder} has {name}, which the model does not have")
            if like is not None and like.shape != tensor.shape:
                raise ValueError(
                    f"{self._folder} has {name} of shape {list(tensor.shape)}, where the model "
                    f"asks for {list(like.shape)}"
                )
            weights[name] = tensor.to(weights[EMBEDDING].device, dtype)

    def _merged(
        self, name: str, base: torch.Tensor, factors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        try:
            down = factors["lora_A"].to(base.device, torch.float32)
            up = factors["lora_B"].to(base.device, torch.float32)
            merged = base + self._scale(self._modules[name], len(down)) * (up @ down)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{self._folder} does not fit {name}: {error}") from error
        if not self._config.get("use_dora"):
            return merged
        magnitude = factors["lora_magnitude_vector"].to(base.device, torch.float32)
        return merged * (magnitude / merged.norm(dim=1))[:, None]

    def _scale(self, module: str, rank: int) -> float:
        alpha = _by_pattern(self._config.get("alpha_pattern"), module, self._config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """The value of the first pattern that the end of the module's name matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(config["r"], int) and config["r"] > 0):
            raise ValueError(f"r is {config['r']!r}")
        float(config["lora_alpha"])
        others = [name for name, value in _PLAIN.items() if (config.get(name) or value) != value]
        if str(config.get("init_lora_weights")).startswith(_CHANGES_THE_BASE):
            others.append("init_lora_weights")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    if others:
        raise ValueError(
            f"{file} has {others[0]} {config[others[0]]!r}: such adapters are not read"
        )
    return config
