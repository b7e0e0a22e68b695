"""FLOPs of Qwen3-VL from its configuration: linear layers by shape, attention by query-key pairs.

A multiplication with its addition counts two. Norms, activations and rotations are left out, as
PyTorch's own counter leaves them out. The yes-no row of the head is too small to count.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

LinearShape = tuple[int, int]  # (inputs, outputs) of a weight


@dataclass(slots=True)
class Flops:
    """linear: FLOPs by the shape of the weight."""

    linear: Counter[LinearShape] = field(default_factory=Counter)
    attention: float = 0.0

    @property
    def total(self) -> float:
        return float(self.linear.total()) + self.attention

    def add_linear(self, rows: int, shapes: Iterable[LinearShape]) -> None:
        for inputs, outputs in shapes:
            self.linear[inputs, outputs] += 2 * rows * inputs * outputs


@dataclass(frozen=True, slots=True)
class DecoderShape:
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def key_value(self) -> list[LinearShape]:
        return [(self.hidden, self.kv_heads * self.head_dim)] * 2

    @property
    def rest(self) -> list[LinearShape]:
        """Query and output projections and the MLP: all of a layer but keys and values."""
        width = self.heads * self.head_dim
        return [
            (self.hidden, width),
            (width, self.hidden),
            *[(self.hidden, self.intermediate)] * 2,
            (self.intermediate, self.hidden),
        ]

    def add_layers(
        self, flops: Flops, layers: int, rows: int, query_keys: float, key_rows: int | None = None
    ) -> None:
        """`rows` tokens through whole layers; key_rows: as many more tokens give keys and values.

        query_keys: pairs of a token and a token that it attends to.
        """
        flops.add_linear(layers * rows, self.rest)
        flops.add_linear(layers * (rows if key_rows is None else key_rows), self.key_value)
        flops.attention += layers * 4.0 * query_keys * self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class VisionShape:
    hidden: int
    depth: int
    intermediate: int
    out_hidden: int
    patch_values: int
    merged: int
    num_mergers: int

    def add_visual(self, flops: Flops, patches: int) -> None:
        """One image or frame pair of so many patches, which attend to one another."""
        hidden, wide = self.hidden, self.hidden * self.merged
        block = [(hidden, 3 * hidden), (hidden, hidden)]
        block += [(hidden, self.intermediate), (self.intermediate, hidden)]
        flops.add_linear(patches, [(self.patch_values, hidden)])
        flops.add_linear(self.depth * patches, block)
        merger = [(wide, wide), (wide, self.out_hidden)]
        flops.add_linear(self.num_mergers * patches // self.merged, merger)
        flops.attention += self.depth * 4.0 * patches * patches * hidden


@dataclass(frozen=True, slots=True)
class ModelShape:
    decoder: DecoderShape
    vision: VisionShape

    @classmethod
    def of(cls, checkpoint: Path) -> "ModelShape":
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        text, vision = config["text_config"], config["vision_config"]
        decoder = DecoderShape(
            text["hidden_size"],
            text["num_hidden_layers"],
            text["intermediate_size"],
            text["num_attention_heads"],
            text["num_key_value_heads"],
            text["head_dim"],
        )
        patch = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
        tower = VisionShape(
            vision["hidden_size"],
            vision["depth"],
            vision["intermediate_size"],
            vision["out_hidden_size"],
            patch,
            vision["spatial_merge_size"] ** 2,
            1 + len(vision["deepstack_visual_indexes"]),
        )
        return cls(decoder, tower)
