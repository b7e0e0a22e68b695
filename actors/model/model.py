"""A checkpoint in memory: vision tower, decoder, and the row of a reranker's head."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn import functional

from shardrank.actors.families.choice import family_of, score_tokens
from shardrank.actors.families.family import Task
from shardrank.actors.model.adapter import Adapter
from shardrank.actors.model.architecture import (
    EMBEDDING,
    HEAD,
    LABELS,
    Architecture,
    read_architecture,
)
from shardrank.actors.model.decoder import Decoder
from shardrank.actors.model.foreign import described, own_weight, weight_files
from shardrank.actors.model.linear import Weights, dequantize
from shardrank.actors.model.vision import VisionTower
from shardrank.actors.prompt import read_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RerankerModel:
    """head is W_yes - W_no, (hidden,) float32, so that a logit is head . h; an embedder has none.
    vision: None of a model for texts.
    """

    vision: VisionTower | None
    decoder: Decoder
    head: torch.Tensor | None
    device: torch.device
    dtype: torch.dtype
    bytes_per_token: int

    def result(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is read of last states (P, hidden): logits (P,), or unit vectors (P, hidden)."""
        states = hidden.float()
        return functional.normalize(states) if self.head is None else states @ self.head


def load_model(
    checkpoint: Path,
    device: torch.device,
    dtype: torch.dtype,
    is_fp8: bool = False,
    is_compiled: bool = False,
    task: Task = "rerank",
    adapter: Path | None = None,
) -> RerankerModel:
    """Load a checkpoint directory. Raises ValueError where weights are missing or broken.

    safetensors only, no code from the checkpoint, nothing downloaded. adapter: a folder of PEFT's
    that is merged into the weights.
    """
    if not list(checkpoint.glob("*.safetensors")):
        raise ValueError(f"{checkpoint} has no *.safetensors weights")
    architecture = read_architecture(checkpoint)
    name = family_of(checkpoint, task).name
    own = None if adapter is None else Adapter(adapter, architecture.own_name)
    try:
        weights = _read_weights(checkpoint, architecture, device, None if own else dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # safetensors raises many kinds on broken files
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{checkpoint} cannot be loaded: {' '.join(lines)[:300]}") from error
    is_headless = task == "embed" or (own is not None and own.num_labels is not None)
    _check_weights(checkpoint, architecture, weights, name, is_headless)
    if own is not None:
        own.merge(weights, dtype, is_tied=architecture.is_tied and task == "rerank")
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
        architecture = replace(
            architecture,
            is_tied=architecture.is_tied and not own.has_head,
            num_labels=own.num_labels or architecture.num_labels,
        )
    logger.info("loaded %s as %s on %s", checkpoint, dtype, device)
    return reranker_model(weights, architecture, checkpoint, is_fp8, is_compiled, task)


def reranker_model(
    weights: Weights,
    architecture: Architecture,
    checkpoint: Path,
    is_fp8: bool = False,
    is_compiled: bool = False,
    task: Task = "rerank",
) -> RerankerModel:
    """The model of these weights, where and as they are; they are taken out of the mapping."""
    embedding, text = weights[EMBEDDING], architecture.text
    dtype: torch.dtype = embedding.dtype
    vision = architecture.vision
    taken = RerankerModel(
        head=_head(weights, architecture, checkpoint) if task == "rerank" else None,
        vision=None if vision is None else VisionTower(weights, vision, is_compiled),
        decoder=Decoder(weights, text, is_fp8, is_compiled),
        device=embedding.device,
        dtype=dtype,
        bytes_per_token=dtype.itemsize * (16 * text.hidden_size + 4 * text.intermediate_size),
    )
    if taken.device.type == "cuda":
        torch.cuda.empty_cache()  # of weights in the form that they had before
    return taken


def _read_weights(
    checkpoint: Path, architecture: Architecture, device: torch.device, dtype: torch.dtype | None
) -> Weights:
    """Every tensor, read straight to the device; dtype: None leaves it as it is."""
    weights = {}
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                # On a CPU a copy: what is read there are the file's own pages.
                weight = tensors.get_tensor(name)
                is_scaled = weight.dtype == torch.float8_e4m3fn or own_weight(name) != name
                kept = weight.dtype if is_scaled or dtype is None else dtype
                weights[architecture.own_name(name)] = weight.to(kept, copy=device.type == "cpu")
    if architecture.is_fp8:
        dequantize(weights, dtype)
    return weights


def _check_weights(
    checkpoint: Path, architecture: Architecture, weights: Weights, family: str, is_headless: bool
) -> None:
    shapes = architecture.shapes()
    unexpected, missing = weights.keys() - shapes.keys(), shapes.keys() - weights.keys()
    if is_headless or not architecture.needs_head:
        missing -= {HEAD}
    if missing:
        raise ValueError(f"{checkpoint} lacks weights the model needs, such as {min(missing)}")
    if unexpected:
        raise ValueError(f"{checkpoint} holds {described(unexpected, family)}")
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise ValueError(
                f"{checkpoint} holds {name} of shape {list(weight.shape)}, where its config.json "
                f"asks for {list(shapes[name])}"
            )


def _head(weights: Weights, architecture: Architecture, checkpoint: Path) -> torch.Tensor:
    """The row that a score is read with: of a classifier with one label that, with two (no, yes)
    their difference; else of the language model's head. Raises ValueError where there is none.
    """
    if architecture.num_labels is None:
        embedding = weights[EMBEDDING]
        head = weights.pop(HEAD, embedding)
        return _yes_no_row(embedding if architecture.is_tied else head, checkpoint)
    rows = weights.pop(LABELS).float()
    if len(rows) > 2:
        raise ValueError(f"{checkpoint} classifies with {len(rows)} labels: a reranker has 1 or 2")
    if len(rows) == 1:
        return rows[0]
    return rows[0] - rows[1] if architecture.has_yes_first else rows[1] - rows[0]


def _yes_no_row(head_weight: torch.Tensor, checkpoint: Path) -> torch.Tensor:
    named = score_tokens(checkpoint)
    if named is not None:
        true, false = named
        if not all(each is None or 0 <= each < len(head_weight) for each in named):
            raise ValueError(f"{checkpoint} has a LogitScore of the tokens {true} and {false}")
        return head_weight[true].float() - (0 if false is None else head_weight[false].float())
    tokenizer_file = checkpoint / "tokenizer.json"
    tokenizer = read_tokenizer(tokenizer_file)
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    if yes is None or no is None:
        raise ValueError(f"{tokenizer_file} has no tokens 'yes' and 'no': not a reranker")
    return head_weight[yes].float() - head_weight[no].float()
