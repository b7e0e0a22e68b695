"""Weights from a seed, made where they are used: nothing of a model's size is read or written.

A directory without weights says by random.json that they are such. Its head.rows has the two rows
of the head that calibration chose, a few kilobytes.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from shardrank.actors.model.architecture import (
    EMBEDDING,
    HEAD,
    Shape,
    read_architecture,
)
from shardrank.actors.model.linear import Weights
from shardrank.actors.model.model import RerankerModel, reranker_model

SEED_FILE, ROWS_FILE = "random.json", "head.rows"
_QUERY_SHARPNESS = 2.5
"""Of q_norm: attention that picks few tokens, so that the last one depends on the document."""


def is_random(directory: Path) -> bool:
    return (directory / SEED_FILE).is_file()


def write_seed(directory: Path, seed: int) -> None:
    (directory / SEED_FILE).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")


def write_rows(directory: Path, rows: list[int], values: torch.Tensor) -> None:
    """Token ids and their rows of the head, which are also those of tied embeddings."""
    tensors = {"rows": torch.tensor(rows), "values": values.cpu().contiguous()}
    save_file(tensors, directory / ROWS_FILE)


def random_weights(directory: Path, device: torch.device, dtype: torch.dtype) -> Weights:
    """The same on every call with one kind of device: they are rounded to the configuration's dtype
    before they get the one that is asked for.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    seed = json.loads((directory / SEED_FILE).read_text(encoding="utf-8"))["seed"]
    rounded: torch.dtype = getattr(torch, config["dtype"])
    shapes = read_architecture(directory).shapes()
    if config["tie_word_embeddings"]:
        del shapes[HEAD]
    generator = torch.Generator(device).manual_seed(seed)
    weights = {
        name: random_weight(name, shape, generator).to(rounded).to(dtype)
        for name, shape in sorted(shapes.items())
    }
    if (directory / ROWS_FILE).is_file():
        chosen = load_file(directory / ROWS_FILE)
        values = chosen["values"].to(rounded).to(dtype)
        weights[HEAD if HEAD in weights else EMBEDDING][chosen["rows"]] = values.to(device)
    return weights


def random_model(directory: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' own class with these weights."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # seconds to import
    from transformers.initialization import no_init_weights

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = str(dtype).removeprefix("torch.")
    with no_init_weights(), torch.device(device), _default(dtype):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    weights = random_weights(directory, device, dtype)
    named = {name if name == HEAD else f"model.{name}": weights[name] for name in weights}
    model.load_state_dict(named, strict=False, assign=True)
    if HEAD not in weights:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def load_random(
    checkpoint: Path,
    device: torch.device,
    dtype: torch.dtype,
    is_fp8: bool = False,
    is_compiled: bool = False,
) -> RerankerModel:
    """As load_model, of such a directory."""
    weights = random_weights(checkpoint, device, dtype)
    return reranker_model(weights, read_architecture(checkpoint), checkpoint, is_fp8, is_compiled)


def random_weight(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Norms near one, biases near zero, matrices with deviation fan_in ** -0.5."""
    random = torch.randn(shape, generator=generator, device=generator.device)
    if name.endswith("bias"):
        random *= 0.02
    elif len(shape) == 1:
        scale = _QUERY_SHARPNESS if name.endswith("q_norm.weight") else 1.0
        random = scale * (1 + 0.05 * random)
    elif "embed" in name and "patch" not in name:
        pass
    else:
        random *= math.prod(shape[1:]) ** -0.5
    return random


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
