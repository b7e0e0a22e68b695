"""The shapes that the benchmark builds checkpoints of: tiny and mid for a CPU, 2b and 8b as real.

Sources for 2b and 8b: config.json of Qwen3-VL-2B and -8B, on which Qwen3-VL-Reranker is built.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "files"
"""What is the same in every preset's checkpoint, for the demo's tokenizer: config.json without the
sizes, and the files that other implementations want beside it. The official script wants a
processor and a chat template, sentence-transformers its list of modules, vLLM the template. Limits
of pixels are the official script's, for every implementation the same.
"""


@dataclass(frozen=True, slots=True)
class Preset:
    """text and vision: the sizes in config.json. page_tokens: visual tokens of the page images that
    fit this size of model. is_written: weights become files; else each process makes them anew.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    page_tokens: int
    is_tied: bool = True
    dtype: str = "float32"
    is_written: bool = True


def _text(
    hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, section: list[int]
) -> dict[str, Any]:
    return {
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
    return {
        "hidden_size": hidden,
        "depth": depth,
        "intermediate_size": intermediate,
        "num_heads": heads,
        "out_hidden_size": out_hidden,
        "deepstack_visual_indexes": deepstack,
    }


_REAL_VOCABULARY = {"vocab_size": 151_936}
PRESETS = {
    "tiny": Preset(
        _text(64, 4, 128, 4, 2, [6, 5, 5]),
        _vision(64, 4, 128, 2, 64, [0, 1, 2]),
        page_tokens=48,
    ),
    "mid": Preset(
        _text(512, 8, 1_536, 8, 4, [12, 10, 10]),
        _vision(256, 6, 1_024, 4, 512, [1, 3, 5]),
        page_tokens=300,
    ),
    "2b": Preset(
        _text(2_048, 28, 6_144, 16, 8, [24, 20, 20]) | _REAL_VOCABULARY,
        _vision(1_024, 24, 4_096, 16, 2_048, [5, 11, 17]),
        page_tokens=1_300,
        dtype="bfloat16",
        is_written=False,
    ),
    "8b": Preset(
        _text(4_096, 36, 12_288, 32, 8, [24, 20, 20]) | _REAL_VOCABULARY,
        _vision(1_152, 27, 4_304, 16, 4_096, [8, 16, 24]),
        page_tokens=1_300,
        is_tied=False,
        dtype="bfloat16",
        is_written=False,
    ),
}


def config_of(name: str) -> dict[str, Any]:
    """config.json in the form of transformers 4.57, which 5.x reads too."""
    preset = PRESETS[name]
    config: dict[str, Any] = json.loads((FILES / "config.json").read_text(encoding="utf-8"))
    common = {"dtype": preset.dtype, "tie_word_embeddings": preset.is_tied}
    config["text_config"] |= preset.text | common
    config["vision_config"] |= preset.vision
    return config | common
