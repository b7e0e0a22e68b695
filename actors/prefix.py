"""What a plan leaves for the next one: keys and values of a prefix that both begin with."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class PrefixStates:
    """Keys and values of a pair's first L tokens, which packing.sharing_keys names."""

    sharing_keys: np.ndarray  # (L,) int64
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # (L, kv_heads, D) key and value
