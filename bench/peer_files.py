"""The files beside weights and tokenizer that other implementations need of a checkpoint.

Ours reads config.json, the weights and tokenizer.json. The official script wants a processor and
a chat template, sentence-transformers its list of modules; vLLM takes the same processor and
template. The limits are the official script's, for every implementation the same.
"""

import json
from pathlib import Path
from typing import Any

MIN_PIXELS = 4 * 32 * 32
MAX_PIXELS = 1_800 * 32 * 32
"""MIN_PIXELS and MAX_PIXELS of the official src/models/qwen3_vl_reranker.py."""

_MAX_VIDEO_PIXELS = 25_165_824  # all frames together, as in Qwen3-VL's own processor
_MAX_LENGTH = 262_144

TEMPLATE_FILE = Path(__file__).parent / "reranker.jinja"


def write_peer_files(directory: Path) -> None:
    """Add them to a directory that has config.json and tokenizer.json; replaces what is there."""
    tokenizer = _read(directory / "tokenizer.json")
    for name, value in {
        "tokenizer_config.json": _tokenizer_config(tokenizer),
        "preprocessor_config.json": _image_processor(),
        "video_preprocessor_config.json": _video_processor(),
        "modules.json": _MODULES,
        "sentence_bert_config.json": _TRANSFORMER_MODULE,
        "config_sentence_transformers.json": _CROSS_ENCODER,
        "1_LogitScore/config.json": _logit_score(tokenizer),
    }.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    template = TEMPLATE_FILE.read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokenizer_config(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Every special token is named: the official truncation keeps `all_special_ids`, no others."""
    special = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    pad = "<|endoftext|>"
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen3VLProcessor",
        "model_max_length": _MAX_LENGTH,
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": pad,
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "additional_special_tokens": [token for token in special if token != pad],
    }


def _image_processor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        **_patches(MAX_PIXELS),
    }


def _video_processor() -> dict[str, Any]:
    return {"video_processor_type": "Qwen3VLVideoProcessor", **_patches(_MAX_VIDEO_PIXELS)}


def _patches(max_pixels: int) -> dict[str, Any]:
    return {
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": max_pixels, "shortest_edge": MIN_PIXELS},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


# sentence-transformers 6.2: the language model's last logits, then logit(yes) - logit(no).
_MODULES = [
    {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "sentence_transformers.base.modules.transformer.Transformer",
    },
    {
        "idx": 1,
        "name": "1",
        "path": "1_LogitScore",
        "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
    },
]
_TRANSFORMER_MODULE = {
    "transformer_task": "any-to-any",
    "modality_config": {
        modality: {"method": "forward", "method_output_name": "logits"}
        | ({"format": "structured"} if modality == "message" else {})
        for modality in ("text", "image", "video", "message")
    },
    "module_output_name": "causal_logits",
}
_CROSS_ENCODER: dict[str, Any] = {
    "model_type": "CrossEncoder",
    "activation_fn": "torch.nn.modules.activation.Sigmoid",
    "prompts": {},
    "default_prompt_name": None,
}


def _logit_score(tokenizer: dict[str, Any]) -> dict[str, int]:
    vocabulary = tokenizer["model"]["vocab"]
    return {"true_token_id": vocabulary["yes"], "false_token_id": vocabulary["no"]}


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
