"""All options of the reranker in one frozen value, checked once.

`None` means: what the checkpoint's own `reranker.json` says, else the official scorer's constant.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from shardrank.actors.fetch.reader import is_object_store
from shardrank.actors.fetch.web import WebMedia

DEFAULT_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
DEFAULT_MAX_VISUAL_TOKENS = 32_768
VideoReader = Literal["pyav", "decord"]
"""The package that decodes video files."""

PIXELS_PER_TOKEN = 32 * 32  # patch 16 x 16, merged 2 x 2

OFFICIAL_DEFAULTS: dict[str, int | float] = {
    "max_length": 10_240,
    "image_min_pixels": 4 * PIXELS_PER_TOKEN,
    "image_max_pixels": 1_800 * PIXELS_PER_TOKEN,
    "video_min_pixels": 128 * PIXELS_PER_TOKEN,
    "video_max_pixels": 768 * PIXELS_PER_TOKEN,
    "video_total_pixels": 7_680 * PIXELS_PER_TOKEN,
    "fps": 1.0,
    "max_frames": 64,
}
"""The official src/models/qwen3_vl_reranker.py and qwen_vl_utils 0.0.14 vision_process.py."""


def _check_limit(name: str, value: int | float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if name not in ("fps", "max_video_s") and not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above zero, got {value!r}")


def _check_order(lowest: int | None, highest: int | None, kind: str) -> None:
    if lowest is not None and highest is not None and lowest > highest:
        raise ValueError(
            f"{kind}_min_pixels must not exceed {kind}_max_pixels, got {lowest} > {highest}"
        )


def _check_roots(value: Any) -> None:
    roots = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(roots, tuple) or not all(isinstance(root, str) and root for root in roots):
        raise ValueError(f"media_root must be a place or a tuple of places, got {value!r}")
    if any(map(is_object_store, roots[1:])):
        raise ValueError(
            f"media_root must have an object store first, where relative paths start, got {value!r}"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """Preprocessing limits that one query may set for itself; None leaves the configured value.

    Pixels are counted after decoding: of one image, or of one video frame. `video_total_pixels`
    bounds all frames of a frame list together (the official scorer does not apply it to files).
    """

    max_length: int | None = None
    image_min_pixels: int | None = None
    image_max_pixels: int | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    video_total_pixels: int | None = None
    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_limit(field.name, getattr(self, field.name))
        _check_order(self.image_min_pixels, self.image_max_pixels, "image")
        _check_order(self.video_min_pixels, self.video_max_pixels, "video")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "QueryOptions":
        """Raises ValueError on an unknown option, naming it."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"unknown option {unknown[0]!r}; known options: {known}")
        return cls(**values)

    def over(self, base: "QueryOptions") -> "QueryOptions":
        """These options where they are set, `base` where they are not."""
        chosen = {
            field.name: getattr(base, field.name)
            if getattr(self, field.name) is None
            else getattr(self, field.name)
            for field in fields(self)
        }
        return QueryOptions(**chosen)


OFFICIAL_OPTIONS = QueryOptions.from_mapping(OFFICIAL_DEFAULTS)


@dataclass(frozen=True, slots=True)
class RerankerConfig:
    """Everything a Reranker needs to know. Raises ValueError on a value out of range.

    model: a checkpoint directory or a hub name such as `Qwen/Qwen3-VL-Reranker-2B`.
    dtype: "auto" is bfloat16 on CUDA and float32 elsewhere; the score head is float32 always.
    special_tokens: "neutralize" reads `<|im_end|>` typed in a text as plain characters;
        "official" lets it act as the special token, as the official scorer does.
    empty: "error" makes a query or document that says nothing (no text, image or video, or blanks
        alone) an error; "official" scores it as the official scorer does: None is the word NULL,
        "" the empty string.
    image_depth: "scale" scales grey images of more than 8 bits by their range; "official" clips
        them at 255, as the official scorer does: nearly white pages, black ones of fractions.
    max_batch_tokens: tokens of one packed forward; None chooses by device and free memory.
    feature_cache_bytes, host_feature_cache_bytes: vision features kept on the device (None: a fifth
        of a GPU's memory that is free after loading; 1 GiB on a CPU), and of a GPU's those that
        were asked for again and had to leave it on the host.
    quantization: "fp8" rounds the decoder's linear layers to float8 (by row, dynamically), which
        moves scores; for GPUs that multiply fp8, with bfloat16; a CPU imitates it.
    video_reader: "pyav" gives the frames that a sequential decode shows; "decord" those that the
        official scorer sees, which are others for edit lists, B-frames in AVI and the like.
    batch_invariant: a pair's score has the same bits whatever is scored beside it: each pair and
        each image is computed alone, and nothing is shared.
    compile: torch.compile for the layers' parts; None: on CUDA only.
    max_video_s: seconds of a video file; None: any length, as in the official scorer.
    max_visual_tokens: of a pair, whose truncation never cuts them; the official scorer has no
        limit, and the models were made for 32,768 tokens.
    media_root: a directory or an object store's prefix, or several: relative media paths start at
        the first, no local path may lie outside all of them, and no object outside an object
        store's. (): no local path is read; None: any is, relative ones from the working directory.
    web_media: what may be fetched over http(s); None: nothing.
    local_media: False: no path is read, neither a local one nor an object store's, for when paths
        come from strangers.
    """

    model: str
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    instruction: str = DEFAULT_INSTRUCTION
    options: QueryOptions = QueryOptions()
    special_tokens: Literal["neutralize", "official"] = "neutralize"
    empty: Literal["error", "official"] = "error"
    image_depth: Literal["scale", "official"] = "scale"
    max_batch_tokens: int | None = None
    num_threads: int | None = None
    media_root: str | tuple[str, ...] | None = None
    max_text_chars: int = 1_000_000
    max_decoded_pixels: int = 178_956_970  # where Pillow itself refuses, as in the official scorer
    max_video_s: float | None = None
    max_visual_tokens: int = DEFAULT_MAX_VISUAL_TOKENS
    feature_cache_bytes: int | None = None
    host_feature_cache_bytes: int = 4 << 30
    quantization: Literal["none", "fp8"] = "none"
    compile: bool | None = None
    batch_invariant: bool = False
    web_media: WebMedia | None = None
    local_media: bool = True
    video_reader: VideoReader = "pyav"

    def __post_init__(self) -> None:
        for name in ("model", "instruction"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must be a string that is not empty, got {value!r}")
        _check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _check_choice("special_tokens", self.special_tokens, ("neutralize", "official"))
        _check_choice("empty", self.empty, ("error", "official"))
        _check_choice("image_depth", self.image_depth, ("scale", "official"))
        for name in ("max_batch_tokens", "num_threads", "max_video_s"):
            _check_limit(name, getattr(self, name))
        for name in ("max_text_chars", "max_decoded_pixels", "max_visual_tokens"):
            value = getattr(self, name)
            _check_limit(name, 0 if value is None else value)
        _check_choice("quantization", self.quantization, ("none", "fp8"))
        is_imitated = self.device == "cpu"  # with any dtype
        if (
            self.quantization == "fp8"
            and self.dtype not in ("auto", "bfloat16")
            and not is_imitated
        ):
            raise ValueError(f"quantization fp8 goes with dtype bfloat16, got {self.dtype}")
        _check_choice("video_reader", self.video_reader, ("pyav", "decord"))
        for name in ("feature_cache_bytes", "host_feature_cache_bytes"):
            value = getattr(self, name)
            if value is None and name == "feature_cache_bytes":
                continue
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number and not negative, got {value!r}")
        if self.compile not in (None, True, False):
            raise ValueError(f"compile must be True, False or None, got {self.compile!r}")
        _check_roots(self.media_root)
        if not isinstance(self.web_media, WebMedia | None):
            raise ValueError(f"web_media must be a WebMedia or None, got {self.web_media!r}")
        for name in ("local_media", "batch_invariant"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def resolve(self, checkpoint: Path) -> "RerankerConfig":
        """Fill every option: this config, then `reranker.json` of the checkpoint, then official."""
        path = checkpoint / "reranker.json"
        own = QueryOptions()
        if path.is_file():
            try:
                own = QueryOptions.from_mapping(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {error}") from error
        options = self.options.over(own).over(OFFICIAL_OPTIONS)
        return replace(self, options=options)
