"""Checkpoints of random weights in Qwen3-VL's own layout, made here and never downloaded.

Random, but alive: activations keep their size from layer to layer, and scores spread over (0, 1),
so that comparing the scores of two implementations says something.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from bench.calibration import centre_scores
from bench.peer_files import write_peer_files
from bench.presets import PRESETS, Preset
from bench.random_weights import random_weight, write_seed
from bench.tokenizer import SPECIAL_TOKENS, train_tokenizer

_FINISHED = ".finished"
_VOCAB_MULTIPLE = 64


def build(
    preset: str,
    directory: Path,
    seed: int = 0,
    device: str = "cpu",
    max_shard_bytes: int = 4 << 30,
    has_weights: bool | None = None,
) -> Path:
    """Write a checkpoint, or leave the finished one that is there. Weights are made on `device`.

    has_weights False: only their seed is written (random_weights.py). None: as the preset says.
    """
    finished = directory / _FINISHED
    if finished.exists():
        return directory
    config = write_outline(preset, directory)
    if PRESETS[preset].is_written if has_weights is None else has_weights:
        _save_weights(directory, config, seed, device, max_shard_bytes)
    else:
        write_seed(directory, seed)
    centre_scores(directory, device)
    finished.touch()
    return directory


def write_outline(preset: str, directory: Path) -> dict[str, Any]:
    """Everything but the weights: tokenizer, configuration (which is returned), peers' files."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = config_of(PRESETS[preset], tokenizer)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", _generation_config(config))
    write_peer_files(directory)
    return config


def config_of(preset: Preset, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json in the form of transformers 4.57, which 5.x reads too."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    own_size = -(-tokenizer.get_vocab_size() // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    text = preset.text | {
        "vocab_size": preset.vocab_size or own_size,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "tie_word_embeddings": preset.is_tied,
        "dtype": preset.dtype,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "dtype": preset.dtype,
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": preset.is_tied,
        "transformers_version": "4.57.1",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": preset.vision,
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "bos_token_id": config["text_config"]["bos_token_id"],
        "eos_token_id": config["text_config"]["eos_token_id"],
        "transformers_version": config["transformers_version"],
    }


def _save_weights(
    directory: Path, config: dict[str, Any], seed: int, device: str, max_shard_bytes: int
) -> None:
    """One file, or shards with their index, one shard in memory at a time."""
    shapes = _shapes(config)
    dtype: torch.dtype = getattr(torch, config["dtype"])
    sizes = {name: dtype.itemsize * math.prod(shape) for name, shape in shapes.items()}
    shards = _shards(sizes, max_shard_bytes)
    generator = torch.Generator(device).manual_seed(seed)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: random_weight(name, shapes[name], generator).to(dtype).cpu() for name in names
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _write_json(
            directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": index}
        )


def _shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of all weights, from transformers' own class without memory."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # seconds to import

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    state = model.state_dict()
    if config["tie_word_embeddings"]:
        state.pop("lm_head.weight", None)
    return {name: state[name].shape for name in sorted(state)}


def _shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    filled = max_bytes
    for name, size in sizes.items():
        if filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
