"""All options of the reranker in one frozen value, checked once.

`None` means: what the checkpoint's own `reranker.json` says, else the official scorer's constant.
Each field says by a Setting what it is; the job, the endpoint and config.yaml read that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from shardrank.actors.families.choice import family_of, own_instruction
from shardrank.actors.families.family import Role, Task
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER
from shardrank.actors.fetch.reader import is_object_store
from shardrank.actors.fetch.web import WebMedia

DEFAULT_MAX_VISUAL_TOKENS = 32_768
Precision = Literal["float32", "float16"]
VideoReader = Literal["pyav", "decord"]
"""The package that decodes video files."""

PIXELS_PER_TOKEN = 32 * 32  # patch 16 x 16, merged 2 x 2

OFFICIAL_DEFAULTS: dict[str, int | float] = {
    "max_length": QWEN3_VL_RERANKER.max_length,
    "image_min_pixels": 4 * PIXELS_PER_TOKEN,
    "image_max_pixels": 1_800 * PIXELS_PER_TOKEN,
    "video_min_pixels": 128 * PIXELS_PER_TOKEN,
    "video_max_pixels": 768 * PIXELS_PER_TOKEN,
    "video_total_pixels": 7_680 * PIXELS_PER_TOKEN,
    "fps": 1.0,
    "max_frames": 64,
}
"""The official src/models/qwen3_vl_reranker.py and qwen_vl_utils 0.0.14 vision_process.py."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field of a configuration is to who sets it, beside its type and default.

    name: in config.yaml, and the command's option, where it is not the field's; flag: the option,
    where it is not the name. can_be_zero: of a number, which is above zero else.
    """

    help: str
    name: str | None = None
    flag: str | None = None
    can_be_zero: bool = False


@cache
def settings_of(kind: type) -> dict[str, tuple[Any, Setting]]:
    """A configuration's fields that have a Setting: their types without it, and it."""
    hints = get_type_hints(kind, include_extras=True)
    found = {name: (hint, get_args(hint)[1:]) for name, hint in hints.items()}
    return {
        name: (get_args(hint)[0], more[0])
        for name, (hint, more) in found.items()
        if more and isinstance(more[0], Setting)
    }


def check_settings(config: Any, *names: str) -> None:
    """Raises ValueError where one of these fields is not of its type or out of its range."""
    own: Any = type(config)
    known = settings_of(own)
    for name in names or known:
        kind, setting = known[name]
        _check(name, kind, getattr(config, name), setting.can_be_zero)


@cache
def without_none(kind: Any) -> tuple[Any, bool]:
    """A field's type, and whether it may be None beside."""
    others = tuple(each for each in get_args(kind) if each is not type(None))
    is_optional = len(others) < len(get_args(kind))
    return (reduce(or_, others) if is_optional else kind), is_optional


def _check(name: str, kind: Any, value: Any, can_be_zero: bool) -> None:
    kind, is_optional = without_none(kind)
    if value is None and is_optional:
        return
    if kind in (int, float):
        _check_limit(name, value, can_be_zero, kind is float)
    elif kind is str and not (isinstance(value, str) and value):
        raise ValueError(f"{name} must be a string that is not empty, got {value!r}")
    elif kind is bool and not isinstance(value, bool):
        allowed = "True, False or None" if is_optional else "True or False"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    elif get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")


def _check_limit(name: str, value: Any, can_be_zero: bool, has_fraction: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not has_fraction and not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if can_be_zero and value < 0:
        raise ValueError(f"{name} must be a whole number and not negative, got {value!r}")
    if not can_be_zero and not 0 < value < float("inf"):
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


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """Preprocessing limits that one query may set for itself; None leaves the configured value.

    Pixels are counted after decoding: of one image, or of one video frame. `video_total_pixels`
    bounds all frames of a frame list together (the official scorer does not apply it to files).
    """

    max_length: Annotated[int | None, Setting("Tokens of a pair")] = None
    image_min_pixels: Annotated[int | None, Setting("Of one image")] = None
    image_max_pixels: Annotated[int | None, Setting("Of one image")] = None
    video_min_pixels: Annotated[int | None, Setting("Of one frame")] = None
    video_max_pixels: Annotated[int | None, Setting("Of one frame")] = None
    video_total_pixels: Annotated[int | None, Setting("Of a frame list")] = None
    fps: Annotated[float | None, Setting("Frames a second of a video file")] = None
    max_frames: Annotated[int | None, Setting("Frames of a video")] = None

    def __post_init__(self) -> None:
        check_settings(self)
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
class EmbeddingOptions:
    """What a job makes of an embedding model's vectors.

    dimensions: the first so many, a unit vector again; None: all. precision: of the files.
    """

    role: Role = "document"
    dimensions: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, allowed in (("role", Role), ("precision", Precision)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}")
        if self.dimensions is not None:
            _check_limit("dimensions", self.dimensions, can_be_zero=False, has_fraction=False)


@dataclass(frozen=True, slots=True)
class RerankerConfig:
    """Everything a Reranker needs to know. Raises ValueError on a value out of range.

    adapter: a directory of PEFT's; its base is the model, in float32 when it is merged.
    embedding: for the embedding models, whose result is a vector; None: pairs are scored.
    dtype: the score head is float32 always.
    empty: what says nothing has no text, image or video, or blanks alone; "official" scores it as
        the official scorer does: None is the word NULL, "" the empty string.
    image_depth: "official" clips at 255 as the official scorer does: nearly white pages, black
        ones of fractions.
    max_batch_tokens: None chooses by device and free memory.
    feature_cache_bytes: None is a fifth of a GPU's memory that is free after loading, and 1 GiB on
        a CPU.
    quantization: "fp8" rounds weights and activations by row, dynamically; for GPUs that multiply
        fp8, with bfloat16; a CPU imitates it.
    video_reader: "pyav" gives the frames that a sequential decode shows; "decord" those that the
        official scorer sees, which are others for edit lists, B-frames in AVI and the like.
    batch_invariant: each pair and each image is computed alone, and nothing is shared.
    max_video_s: None is any length, as in the official scorer.
    max_visual_tokens: the official scorer has no limit; the models were made for 32,768 tokens.
    media_root: a directory or an object store's prefix, or several: relative media paths start at
        the first, no local path may lie outside all of them, and no object outside an object
        store's. (): no local path is read; None: any is, relative ones from the working directory.
    web_media: what may be fetched over http(s); None: nothing.
    local_media: for when paths come from strangers.
    """

    model: Annotated[str, Setting("Checkpoint directory or hub name")]
    revision: Annotated[str | None, Setting("Revision of a hub model")] = None
    device: Annotated[str, Setting("auto, cpu or cuda")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Setting("auto: bfloat16 on CUDA, else float32"),
    ] = "auto"
    adapter: Annotated[str | None, Setting("LoRA or DoRA adapter, merged at load")] = None
    embedding: EmbeddingOptions | None = None
    instruction: Annotated[
        str | None,
        Setting("For queries that have none of their own; default: the official one of the model"),
    ] = None
    options: QueryOptions = QueryOptions()
    special_tokens: Annotated[
        Literal["neutralize", "official"],
        Setting("Special tokens typed in a text: plain characters, or acting"),
    ] = "neutralize"
    empty: Annotated[
        Literal["error", "official"],
        Setting("A query or document that says nothing: an error, or NULL scored"),
    ] = "error"
    image_depth: Annotated[
        Literal["scale", "official"],
        Setting("Grey images of over 8 bits: scaled by their range, or clipped at 255"),
    ] = "scale"
    max_batch_tokens: Annotated[int | None, Setting("Tokens of one forward")] = None
    num_threads: Annotated[
        int | None, Setting("CPU threads of a scoring actor or replica", name="threads")
    ] = None
    media_root: Annotated[
        str | tuple[str, ...] | None,
        Setting(
            "Where local media paths may lead, symbolic links followed; relative ones start at the "
            "first root. Without one no local path is read"
        ),
    ] = None
    max_text_chars: Annotated[int, Setting("Characters of one text")] = 1_000_000
    max_decoded_pixels: Annotated[int, Setting("Of one image as it is encoded")] = (
        178_956_970  # where Pillow itself refuses, as in the official scorer
    )
    max_video_s: Annotated[float | None, Setting("Seconds of a video file")] = None
    pdf_text: Annotated[
        bool, Setting("Read the text layer of a PDF's page beside its image, after its own text")
    ] = False
    max_pdf_pages: Annotated[int, Setting("Of a PDF file: one that has more is an error")] = 1_000
    max_visual_tokens: Annotated[
        int, Setting("Of a pair, which no truncation cuts: one that has more is an error")
    ] = DEFAULT_MAX_VISUAL_TOKENS
    feature_cache_bytes: Annotated[
        int | None, Setting("Vision features kept on the device", can_be_zero=True)
    ] = None
    host_feature_cache_bytes: Annotated[
        int,
        Setting(
            "Of a GPU's features, those kept on the host that were asked for again and had to "
            "leave it",
            can_be_zero=True,
        ),
    ] = 4 << 30
    quantization: Annotated[
        Literal["none", "fp8"],
        Setting("fp8: the decoder's linear layers in 8 bits, which moves scores"),
    ] = "none"
    compile: Annotated[bool | None, Setting("torch.compile; default: on CUDA")] = None
    batch_invariant: Annotated[
        bool, Setting("Score each pair alone: the same bits whatever rides along, and slower")
    ] = False
    web_media: Annotated[
        WebMedia | None,
        Setting("Fetch media over http(s) too, from public addresses only; else such rows fail"),
    ] = None
    local_media: Annotated[bool, Setting("Read paths, local ones and object stores'")] = True
    video_reader: Annotated[
        VideoReader,
        Setting(
            "decord: the official scorer's own reader and frames, from an old FFmpeg; for files "
            "that are trusted"
        ),
    ] = "pyav"

    def __post_init__(self) -> None:
        check_settings(self)
        is_imitated = self.device == "cpu"  # with any dtype
        if (
            self.quantization == "fp8"
            and self.dtype not in ("auto", "bfloat16")
            and not is_imitated
        ):
            raise ValueError(f"quantization fp8 goes with dtype bfloat16, got {self.dtype}")
        _check_roots(self.media_root)
        if not isinstance(self.web_media, WebMedia | None):
            raise ValueError(f"web_media must be a WebMedia or None, got {self.web_media!r}")

    @property
    def task(self) -> Task:
        return "rerank" if self.embedding is None else "embed"

    def resolve(self, checkpoint: Path) -> "RerankerConfig":
        """Fill instruction and options: this config, then the checkpoint's own (`reranker.json`,
        sentence-transformers' prompts), then the official ones of its family. Raises ValueError
        where it is of none of this task.
        """
        family = family_of(checkpoint, self.task)
        path = checkpoint / "reranker.json"
        own = QueryOptions()
        if path.is_file():
            try:
                own = QueryOptions.from_mapping(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {error}") from error
        official = QueryOptions(max_length=family.max_length).over(OFFICIAL_OPTIONS)
        options = self.options.over(own).over(official)
        saved = own_instruction(checkpoint, self.task)
        instruction = self.instruction or saved or family.instruction
        return replace(self, options=options, instruction=instruction)
