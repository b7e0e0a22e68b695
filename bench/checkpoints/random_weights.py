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

from shardrank.actors.model.model import RerankerModel, reranker_model

SEED_FILE, ROWS_FILE = "random.json", "head.rows"
# The scale of q_norm: attention picks few tokens, so that the last one depends on the document.
_QUERY_SHARPNESS = 2.5


def is_random(directory: Path) -> bool:
    return (directory / SEED_FILE).is_file()


def yes_no_ids(directory: Path) -> list[int]:
    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    return [vocabulary["yes"], vocabulary["no"]]


def random_model(directory: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' own class. The same on every call with one kind of device: the weights are
    rounded to the configuration's dtype before they get the one that is asked for.
    """
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig  # seconds to import
    from transformers.initialization import no_init_weights

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    rounded: torch.dtype = getattr(torch, config["dtype"])
    with no_init_weights(), torch.device(device):
        model = AutoModelForImageTextToText.from_config(Qwen3VLConfig(**config), dtype=dtype)
    model.requires_grad_(False).eval()
    if config["tie_word_embeddings"]:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    seed = json.loads((directory / SEED_FILE).read_text(encoding="utf-8"))["seed"]
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        assert parameter.dtype == dtype, name
        parameter.copy_(_random_weight(name, parameter.shape, generator).to(rounded))
    if (directory / ROWS_FILE).is_file():
        values = load_file(directory / ROWS_FILE)["yes_no"].to(rounded).to(device, dtype)
        model.lm_head.weight[yes_no_ids(directory)] = values
    return model


def load_random(
    checkpoint: Path, device: torch.device, dtype: torch.dtype, **options: bool
) -> RerankerModel:
    return reranker_model(random_model(checkpoint, device, dtype), checkpoint, **options)


def _random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Norms near one, biases near zero, matrices with deviation fan_in ** -0.5."""
    random = torch.randn(shape, generator=generator, device=generator.device)
    if name.endswith("bias"):
        return random * 0.02
    if len(shape) == 1:
        return (_QUERY_SHARPNESS if name.endswith("q_norm.weight") else 1) * (1 + 0.05 * random)
    is_embedding = "embed" in name and "patch" not in name
    return random if is_embedding else random * math.prod(shape[1:]) ** -0.5
