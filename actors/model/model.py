"""A Qwen3-VL-Reranker checkpoint in memory: vision tower, decoder, the yes-no row of its head."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from shardrank.actors.model.decoder import Decoder
from shardrank.actors.model.foreign import described, weight_files
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
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for part in ("text_config", "vision_config"):
        if not config.get(part):  # a model of 8 billion weights is the default
            raise ValueError(f"{checkpoint / 'config.json'} has no {part}")
    try:
        model = _empty_model(checkpoint)
        weights = _read_weights(checkpoint, model.state_dict(), device, dtype)
        loading = model.load_state_dict(weights, strict=False, assign=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds on broken files
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{checkpoint} cannot be loaded: {' '.join(lines)[:300]}") from error
    missing = set(loading.missing_keys)
    if "lm_head.weight" in missing and (_is_tied(checkpoint) or model.config.tie_word_embeddings):
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
        missing -= {"lm_head.weight"}
    if missing:
        raise ValueError(f"{checkpoint} lacks weights the model needs, such as {min(missing)}")
    if loading.unexpected_keys:
        raise ValueError(f"{checkpoint} holds {described(loading.unexpected_keys)}")
    model.requires_grad_(False).eval()
    logger.info("loaded %s as %s on %s", checkpoint, dtype, device)
    return reranker_model(model, checkpoint, is_fp8=is_fp8, is_compiled=is_compiled)


def reranker_model(
    model: Any, checkpoint: Path, is_fp8: bool = False, is_compiled: bool = False
) -> RerankerModel:
    """Takes over the weights of a Qwen3VLForConditionalGeneration, where and as they are."""
    embedding, text = model.model.language_model.embed_tokens.weight, model.config.text_config
    head_weight = embedding if _is_tied(checkpoint) else model.lm_head.weight
    dtype: torch.dtype = embedding.dtype
    taken = RerankerModel(
        vision=VisionTower(
            model.model.visual, model.config.vision_config.spatial_merge_size, is_compiled
        ),
        decoder=Decoder(model.model.language_model, is_fp8, is_compiled),
        head=_yes_no_row(head_weight, checkpoint / "tokenizer.json"),
        device=embedding.device,
        dtype=dtype,
        bytes_per_token=dtype.itemsize * (16 * text.hidden_size + 4 * text.intermediate_size),
    )
    if taken.device.type == "cuda":
        torch.cuda.empty_cache()  # of weights in the form that they had before
    return taken


def _empty_model(checkpoint: Path) -> Any:
    """transformers' module without weights, so that none are made to be replaced."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # seconds to import

    config = Qwen3VLConfig.from_pretrained(checkpoint, local_files_only=True)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    rotary = model.model.language_model.rotary_emb  # its frequencies are in no file
    model.model.language_model.rotary_emb = type(rotary)(config.text_config)
    return model


def _read_weights(
    checkpoint: Path, expected: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Every tensor by the name that the module has for it, read straight to the device."""
    weights = {}
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                own = name if name in expected else f"model.{name}"
                # On a CPU a copy: what is read there are the file's own pages.
                weight = tensors.get_tensor(name).to(dtype, copy=device.type == "cpu")
                weights[own if own in expected else name] = weight
    return weights


def _is_tied(checkpoint: Path) -> bool:
    """Whether the head is the embeddings, whatever lm_head.weight the files may hold.

    The official class ties by text_config under transformers 4.57.6; under 5.x, which reads the
    outer setting instead, it takes a head out of the files that differs.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return bool((config.get("text_config") or {}).get("tie_word_embeddings"))


def _yes_no_row(head_weight: torch.Tensor, tokenizer_file: Path) -> torch.Tensor:
    tokenizer = read_tokenizer(tokenizer_file)
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    if yes is None or no is None:
        raise ValueError(f"{tokenizer_file} has no tokens 'yes' and 'no': not a reranker")
    return head_weight[yes].float() - head_weight[no].float()
