"""What config.json says of a model: its sizes, and each tensor's name and shape.

Source: transformers' configuration_qwen3_vl.py and configuration_qwen3.py, whose defaults hold
where a file leaves something out, and the modeling files beside them, which take seconds to import.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

Shape = tuple[int, ...]
EMBEDDING, HEAD = "language_model.embed_tokens.weight", "lm_head.weight"
LABELS = "score.weight"
_YES = ("yes", "true", "relevant", "positive", "entailment")
TEXT_MODEL = "qwen3"
"""The model_type of a decoder alone, whose config.json has its sizes at the top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The decoder's sizes, by the names that config.json's text_config has for them."""

    vocab_size: int = 151_936
    hidden_size: int = 4096
    intermediate_size: int = 22_016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)  # text_config itself

    def shapes(self) -> dict[str, Shape]:
        """Each tensor's shape."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        layer: dict[str, Shape] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        return {
            EMBEDDING: (self.vocab_size, hidden),
            HEAD: (self.vocab_size, hidden),
            "language_model.norm.weight": (hidden,),
        } | {
            f"language_model.layers.{index}.{name}.weight": shape
            for index in range(self.num_hidden_layers)
            for name, shape in layer.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision tower's sizes, by the names that config.json's vision_config has for them."""

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)

    def shapes(self) -> dict[str, Shape]:
        """Each tensor's shape."""
        hidden, patch = self.hidden_size, (self.patch_size, self.patch_size)
        block = {
            "norm1": (hidden,),
            "norm2": (hidden,),
            "attn.qkv": (3 * hidden, hidden),
            "attn.proj": (hidden, hidden),
            "mlp.linear_fc1": (self.intermediate_size, hidden),
            "mlp.linear_fc2": (hidden, self.intermediate_size),
        }
        modules: dict[str, Shape] = {
            "patch_embed.proj": (hidden, self.in_channels, self.temporal_patch_size, *patch)
        }
        for index in range(self.depth):
            modules |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
        joined = self.spatial_merge_size**2 * hidden
        modules |= self._merger("merger", hidden, joined)
        for index in range(len(self.deepstack_visual_indexes)):
            modules |= self._merger(f"deepstack_merger_list.{index}", joined, joined)
        weights = {f"visual.{name}.weight": shape for name, shape in modules.items()}
        biases = {f"visual.{name}.bias": shape[:1] for name, shape in modules.items()}
        table = {"visual.pos_embed.weight": (self.num_position_embeddings, hidden)}
        return weights | biases | table

    def _merger(self, name: str, normed: int, joined: int) -> dict[str, Shape]:
        return {
            f"{name}.norm": (normed,),
            f"{name}.linear_fc1": (joined, joined),
            f"{name}.linear_fc2": (self.out_hidden_size, joined),
        }


@dataclass(frozen=True, slots=True)
class Architecture:
    """is_tied: the head is the embeddings, whatever lm_head.weight the files may hold.

    The official class ties by text_config under transformers 4.57.6; under 5.x, which reads the
    outer setting instead, it takes a head out of the files that differs. needs_head: neither says
    that the embeddings are the head. vision: None of a model for texts. num_labels: of a sequence
    classifier, which has a row for each in the place of a head; has_yes_first: of two labels the
    first is the one that counts, by their names. is_fp8: of a checkpoint whose
    weights may be in 8 bits with scales beside them.
    """

    text: TextConfig
    vision: VisionConfig | None
    is_tied: bool
    needs_head: bool
    num_labels: int | None = None
    has_yes_first: bool = False
    is_fp8: bool = False

    def shapes(self) -> dict[str, Shape]:
        """Each tensor's shape by its `own_name`."""
        labels = {LABELS: (self.num_labels, self.text.hidden_size)} if self.num_labels else {}
        return self.text.shapes() | (self.vision.shapes() if self.vision else {}) | labels

    def own_name(self, name: str) -> str:
        """A tensor's name as the engine has it."""
        return own_name(name, is_text=self.vision is None)


def read_architecture(checkpoint: Path) -> Architecture:
    """Reads a checkpoint's config.json. Raises ValueError naming what it lacks or has wrong."""
    file = checkpoint / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    is_text = config.get("model_type") == TEXT_MODEL
    for part in () if is_text else ("text_config", "vision_config"):
        if not config.get(part):  # a model of 8 billion weights is the default
            raise ValueError(f"{file} has no {part}")
    try:
        return architecture(config)
    except ValueError as error:
        raise ValueError(f"{file} has {error}") from error


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json. Raises ValueError naming a value of another type."""
    is_text = config.get("model_type") == TEXT_MODEL
    text_part = config if is_text else config.get("text_config") or {}
    given = _given(TextConfig, text_part)
    if text_part.get("num_key_value_heads", 0) is None:
        given["num_key_value_heads"] = given.get("num_attention_heads", 32)
    text = TextConfig(**given, source=text_part)
    vision_part = config.get("vision_config") or {}
    vision = None if is_text else VisionConfig(**_given(VisionConfig, vision_part))
    is_outer_tied = bool(config.get("tie_word_embeddings"))
    is_tied = text.tie_word_embeddings
    classes = config.get("architectures") or ()
    is_classifier = any(str(each).endswith("ForSequenceClassification") for each in classes)
    labels = [str(each).lower() for each in (config.get("id2label") or {}).values()]
    num_labels = (len(labels) or config.get("num_labels") or 2) if is_classifier else None
    has_yes_first = len(labels) == 2 and labels[0] in _YES and labels[1] not in _YES
    needs_head = not (is_tied or is_outer_tied or is_classifier)
    is_fp8 = any(part.get("quantization_config") for part in (config, text_part))
    return Architecture(text, vision, is_tied, needs_head, num_labels, has_yes_first, is_fp8=is_fp8)


def own_name(name: str, is_text: bool = False) -> str:
    """A tensor's name without the `model.` that the class with a head puts before its body's; of a
    model for texts, with the `language_model.` that the decoder has in the others.
    """
    inner = name.removeprefix("model.")
    if inner in (HEAD, LABELS):
        return name
    return f"language_model.{inner}" if is_text else inner


def _given(kind: type, part: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a part of config.json that the dataclass `kind` has fields for."""
    given: dict[str, Any] = {}
    for known in fields(kind):
        value, expected = part.get(known.name), get_origin(known.type) or known.type
        if value is None or known.name == "source":
            continue
        if expected is tuple and isinstance(value, list):
            value = tuple(value)
        assert isinstance(expected, type)
        if not isinstance(value, (int, float) if expected is float else expected):
            raise ValueError(f"{known.name} {value!r}, where one of type {expected.__name__} fits")
        given[known.name] = value
    return given
