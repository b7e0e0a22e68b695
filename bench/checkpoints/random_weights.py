"""Weights from a seed, made where they are used: nothing of a model's size is read or written.

A directory without weights says by random.json that they are such. Its head.rows has the two rows
of the head that build.py chose, a few kilobytes.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from shardrank.actors.model.architecture import EMBEDDING, HEAD, Shape, read_architecture
from shardrank.actors.model.linear import Weights
from shardrank.actors.model.model import RerankerModel, reranker_model

SEED_FILE, ROWS_FILE = "random.json", "head.rows"
# The scale of q_norm: attention picks few tokens, so that the last one depends on the document.
_QUERY_SHARPNESS = 2.5


def is_random(directory: Path) -> bool:
    return (directory / SEED_FILE).is_file()


def yes_no_ids(directory: Path) -> list[int]:
    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    return [vocabulary["yes"], vocabulary["no"]]


def random_weights(directory: Path, device: torch.device, dtype: torch.dtype) -> Weights:
    """The same on every call with one kind of device: they are rounded to the configuration's dtype
    before they get the one that is asked for.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    seed = json.loads((directory / SEED_FILE).read_text(encoding="utf-8"))["seed"]
    rounded: torch.dtype = getattr(torch, config["dtype"])
    shapes = read_architecture(directory).shapes()
    head = EMBEDDING if config["tie_word_embeddings"] else HEAD
    if head == EMBEDDING:
        del shapes[HEAD]
    generator = torch.Generator(device).manual_seed(seed)
    weights = {
        name: _random_weight(name, shape, generator).to(rounded).to(dtype)
        for name, shape in sorted(shapes.items())
    }
    if (directory / ROWS_FILE).is_file():
        values = load_file(directory / ROWS_FILE)["yes_no"].to(rounded).to(device, dtype)
        weights[head][yes_no_ids(directory)] = values
    return weights


def random_model(directory: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' own class with these weights."""
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig  # seconds to import
    from transformers.initialization import no_init_weights

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    with no_init_weights(), torch.device(device):
        model = AutoModelForImageTextToText.from_config(Qwen3VLConfig(**config), dtype=dtype)
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
    adapter: None = None,
    **options: Any,
) -> RerankerModel:
    weights = random_weights(checkpoint, device, dtype)
    return reranker_model(weights, read_architecture(checkpoint), checkpoint, **options)


def _random_weight(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Norms near one, biases near zero, matrices with deviation fan_in ** -0.5."""
    random = torch.randn(shape, generator=generator, device=generator.device)
    if name.endswith("bias"):
        return random * 0.02
    if len(shape) == 1:
        return (_QUERY_SHARPNESS if name.endswith("q_norm.weight") else 1) * (1 + 0.05 * random)
    is_embedding = "embed" in name and "patch" not in name
    return random if is_embedding else random * math.prod(shape[1:]) ** -0.5
