"""A Qwen3-VL-Reranker checkpoint in memory: vision tower, decoder, the yes-no row of its head."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from shardrank.actors.model.architecture import (
    EMBEDDING,
    HEAD,
    Architecture,
    own_name,
    read_architecture,
)
from shardrank.actors.model.decoder import Decoder
from shardrank.actors.model.foreign import described, weight_files
from shardrank.actors.model.linear import Weights
from shardrank.actors.model.vision import VisionTower
from shardrank.actors.prompt import read_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RerankerModel:
    """head is W_yes - W_no, (hidden,) float32, so that a logit is head . h."""

    vision: VisionTower
    decoder: Decoder
    head: torch.Tensor
    device: torch.device
    dtype: torch.dtype
    bytes_per_token: int


def load_model(
    checkpoint: Path,
    device: torch.device,
    dtype: torch.dtype,
    is_fp8: bool = False,
    is_compiled: bool = False,
) -> RerankerModel:
    """Load a checkpoint directory. Raises ValueError where weights are missing or broken.

    safetensors only, no code from the checkpoint, nothing downloaded.
    """
    if not list(checkpoint.glob("*.safetensors")):
        raise ValueError(f"{checkpoint} has no *.safetensors weights")
    architecture = read_architecture(checkpoint)
    try:
        weights = _read_weights(checkpoint, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # safetensors raises many kinds on broken files
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{checkpoint} cannot be loaded: {' '.join(lines)[:300]}") from error
    _check_weights(checkpoint, architecture, weights)
    logger.info("loaded %s as %s on %s", checkpoint, dtype, device)
    return reranker_model(weights, architecture, checkpoint, is_fp8, is_compiled)


def reranker_model(
    weights: Weights,
    architecture: Architecture,
    checkpoint: Path,
    is_fp8: bool = False,
    is_compiled: bool = False,
) -> RerankerModel:
    """The model of these weights, where and as they are; they are taken out of the mapping."""
    embedding, text = weights[EMBEDDING], architecture.text
    dtype: torch.dtype = embedding.dtype
    head = weights.pop(HEAD, embedding)
    taken = RerankerModel(
        head=_yes_no_row(
            embedding if architecture.is_tied else head, checkpoint / "tokenizer.json"
        ),
        vision=VisionTower(weights, architecture.vision, is_compiled),
        decoder=Decoder(weights, text, is_fp8, is_compiled),
        device=embedding.device,
        dtype=dtype,
        bytes_per_token=dtype.itemsize * (16 * text.hidden_size + 4 * text.intermediate_size),
    )
    if taken.device.type == "cuda":
        torch.cuda.empty_cache()  # of weights in the form that they had before
    return taken


def _read_weights(checkpoint: Path, device: torch.device, dtype: torch.dtype) -> Weights:
    """Every tensor, read straight to the device."""
    weights = {}
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                # On a CPU a copy: what is read there are the file's own pages.
                weight = tensors.get_tensor(name).to(dtype, copy=device.type == "cpu")
                weights[own_name(name)] = weight
    return weights


def _check_weights(checkpoint: Path, architecture: Architecture, weights: Weights) -> None:
    shapes = architecture.shapes()
    unexpected, missing = weights.keys() - shapes.keys(), shapes.keys() - weights.keys()
    if not architecture.needs_head:
        missing -= {HEAD}
    if missing:
        raise ValueError(f"{checkpoint} lacks weights the model needs, such as {min(missing)}")
    if unexpected:
        raise ValueError(f"{checkpoint} holds {described(unexpected)}")
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise ValueError(
                f"{checkpoint} holds {name} of shape {list(weight.shape)}, where its config.json "
                f"asks for {list(shapes[name])}"
            )


def _yes_no_row(head_weight: torch.Tensor, tokenizer_file: Path) -> torch.Tensor:
    tokenizer = read_tokenizer(tokenizer_file)
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    if yes is None or no is None:
        raise ValueError(f"{tokenizer_file} has no tokens 'yes' and 'no': not a reranker")
    return head_weight[yes].float() - head_weight[no].float()
