"""The shapes that the benchmark builds checkpoints of: tiny and mid for a CPU, 2b and 8b as real.

Sources for 2b and 8b: config.json of Qwen3-VL-2B and -8B, on which Qwen3-VL-Reranker is built.
"""

from dataclasses import dataclass
from typing import Any

NAMES = ("tiny", "mid", "2b", "8b")


@dataclass(frozen=True, slots=True)
class Preset:
    """text and vision override the common values below. vocab_size None: the tokenizer's own.

    page_tokens: visual tokens of the page images that fit this size of model.
    is_written: weights become files; else each process makes them anew, from a seed.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    vocab_size: int | None
    is_tied: bool
    dtype: str
    page_tokens: int
    is_written: bool = True


_COMMON_TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 262_144,
    "model_type": "qwen3_vl_text",
    "pad_token_id": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5_000_000,
    "use_cache": True,
}
_COMMON_VISION: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
    "initializer_range": 0.02,
    "model_type": "qwen3_vl",
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def _text(
    hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, section: list[int]
) -> dict[str, Any]:
    return _COMMON_TEXT | {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * sum(section),
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": section,
            "rope_type": "default",
        },
    }


def _vision(
    hidden: int, depth: int, intermediate: int, heads: int, out_hidden: int, deepstack: list[int]
) -> dict[str, Any]:
    return _COMMON_VISION | {
        "hidden_size": hidden,
        "depth": depth,
        "intermediate_size": intermediate,
        "num_heads": heads,
        "out_hidden_size": out_hidden,
        "deepstack_visual_indexes": deepstack,
    }


PRESETS = {
    "tiny": Preset(
        _text(64, 4, 128, 4, 2, [6, 5, 5]),
        _vision(64, 4, 128, 2, 64, [0, 1, 2]),
        vocab_size=None,
        is_tied=True,
        dtype="float32",
        page_tokens=48,
    ),
    "mid": Preset(
        _text(512, 8, 1_536, 8, 4, [12, 10, 10]),
        _vision(256, 6, 1_024, 4, 512, [1, 3, 5]),
        vocab_size=None,
        is_tied=True,
        dtype="float32",
        page_tokens=300,
    ),
    "2b": Preset(
        _text(2_048, 28, 6_144, 16, 8, [24, 20, 20]),
        _vision(1_024, 24, 4_096, 16, 2_048, [5, 11, 17]),
        vocab_size=151_936,
        is_tied=True,
        dtype="bfloat16",
        page_tokens=1_300,
        is_written=False,
    ),
    "8b": Preset(
        _text(4_096, 36, 12_288, 32, 8, [24, 20, 20]),
        _vision(1_152, 27, 4_304, 16, 4_096, [8, 16, 24]),
        vocab_size=151_936,
        is_tied=False,
        dtype="bfloat16",
        page_tokens=1_300,
        is_written=False,
    ),
}
assert tuple(PRESETS) == NAMES
