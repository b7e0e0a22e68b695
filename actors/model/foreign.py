"""What a checkpoint may not hold: adapters, quantised weights, another head, any other tensor.

transformers loads such checkpoints without a word and leaves out what it does not know, so that
another model than the one meant would score. Reads configuration and tensor names, no weights.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shardrank.actors.model.architecture import TEXT_MODEL, Architecture

_DTYPES = {"F64", "F32", "F16", "BF16"}
_KINDS = [
    (
        re.compile(
            r"lora_|\.base_layer\.|magnitude_vector|modules_to_save|hada_|lokr_|\.oft_|ia3_"
        ),
        "an adapter's tensor: merge the adapter into the weights first",
    ),
    (
        re.compile(
            r"scale|qweight|qzeros|g_idx|zero_point|weight_packed|weight_shape|absmax|quant|SCB$"
        ),
        "a quantised module's tensor: give the checkpoint before its quantisation",
    ),
    (
        re.compile(r"(^|\.)(score|classifier|classification_head|v_head|value_head|reward_head)\."),
        "another head than the one that its config.json names",
    ),
]
_PIXELS = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "do_normalize": True,
    "do_rescale": True,
}
_VISION = {
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_TEXT = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
_CONSTANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("config.json", "text_config", _TEXT),
    ("config.json", "vision_config", _VISION),
    ("preprocessor_config.json", "", _PIXELS),
    ("video_preprocessor_config.json", "", _PIXELS),
)
"""File, part of it, and the values there by name; what a file leaves out is as here."""
_SCALES = (".weight_scale", ".weight_scale_inv")
FP8_DTYPE, FP8_BLOCK = "F8_E4M3", 128


def check_config(checkpoint: Path, config: Mapping[str, Any], family: str) -> None:
    """Raises ValueError on an adapter beside the weights, quantised weights, or constants that are
    not those of the family, given by its name.
    """
    check_no_adapter(checkpoint)
    file = checkpoint / "config.json"
    for part in (config, config.get("text_config") or {}):
        settings = part.get("quantization_config") or part.get("compression_config")
        if settings:
            _check_scheme(file, settings if isinstance(settings, Mapping) else {})
    is_text = config.get("model_type") == TEXT_MODEL
    constants = (("config.json", "", _TEXT),) if is_text else _CONSTANTS
    _check_constants(checkpoint, constants, family)
    _check_modules(checkpoint)


def _check_scheme(file: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError naming a quantisation that is not read. settings: config.json's."""
    method = settings.get("quant_method")
    if method == "fp8":
        differing = (name for name in _FP8 if (settings.get(name) or _FP8[name]) != _FP8[name])
        wrong = next((f"fp8, {name} {settings[name]!r}" for name in differing), None)
    elif method == "compressed-tensors":
        wrong = next(filter(None, map(_wrong_group, _groups(file, settings))), None)
    else:
        wrong = method or "of no name"
    if wrong:
        raise ValueError(
            f"{file} has a quantization_config ({wrong}): quantised checkpoints are read in fp8 "
            "with dynamic activations alone, give the one in bfloat16, float16 or float32"
        )


_FP8 = {"activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK, FP8_BLOCK], "fmt": "e4m3"}


def _groups(file: Path, settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    try:
        return list(settings["config_groups"].values())
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{file} has a quantization_config without config_groups") from error


def _wrong_group(group: Mapping[str, Any]) -> str | None:
    """What cannot be read of a group of layers; None: all can."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    if (weights.get("type"), weights.get("num_bits")) != ("float", 8):
        return f"compressed-tensors, {weights.get('num_bits')} bits of {weights.get('type')}"
    is_static = inputs and not inputs.get("dynamic")
    return "compressed-tensors, static activations" if is_static else None


def own_weight(name: str) -> str:
    """The weight that a scale is of; any other tensor's own name."""
    ending = next((each for each in _SCALES if name.endswith(each)), None)
    return name if ending is None else f"{name.removesuffix(ending)}.weight"


def _check_constants(
    checkpoint: Path, known: Iterable[tuple[str, str, dict[str, Any]]], family: str
) -> None:
    """What the engine computes in one way, whatever a file says."""
    for file, part, constants in known:
        path = checkpoint / file
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found.get(part) or {} if part else found
            given = {name: found[name] for name in constants if name in found}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read: {error!r}") from error
        for name, value in given.items():
            if value != constants[name]:
                raise ValueError(
                    f"{path} has {name} {value!r}: a {family} has {constants[name]!r}, "
                    "and nothing else is computed"
                )


def check_no_adapter(checkpoint: Path) -> None:
    """Raises ValueError naming the file by which a directory holds a PEFT adapter."""
    found = [*checkpoint.glob("adapter_config.json"), *sorted(checkpoint.glob("adapter_model.*"))]
    if found:
        raise ValueError(
            f"{found[0]} is an adapter's file: give its folder as the adapter, and the base "
            "in a folder of its own as the model"
        )


def _check_modules(checkpoint: Path) -> None:
    """sentence-transformers keeps a head of its own, a Dense layer say, in a folder beside."""
    list_file = checkpoint / "modules.json"
    if not list_file.is_file():
        return
    try:
        modules = json.loads(list_file.read_text(encoding="utf-8"))
        folders = [checkpoint / module["path"] for module in modules if module["path"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{list_file} cannot be read: {error!r}") from error
    for folder in folders:
        for file in (folder / "model.safetensors", folder / "pytorch_model.bin"):
            if file.is_file():
                raise ValueError(
                    f"{file} holds weights of a module that modules.json puts after the model: "
                    "they are not read"
                )


def check_weights(checkpoint: Path, architecture: Architecture, family: str) -> None:
    """Raises ValueError naming a tensor or file that would be left out or misread.

    Reads the headers of the safetensors files; a checkpoint without any is not checked.
    """
    files = weight_files(checkpoint)
    for file in sorted(checkpoint.glob("*.safetensors")) if files else ():
        if file not in files:
            raise ValueError(f"{file} belongs to no weights that are loaded: {files[0].name} does")
    places: dict[str, Path] = {}
    own_name, expected = architecture.own_name, architecture.shapes().keys()
    meant = own_weight if architecture.is_fp8 else str
    for file in files:
        dtypes = _dtypes(file)
        for name in dtypes:
            weight = own_name(name)
            if weight in places:
                raise ValueError(f"{file} holds {name}, which {places[weight]} has too")
            places[weight] = file
        unexpected = [name for name in dtypes if own_name(meant(name)) not in expected]
        if unexpected:
            raise ValueError(f"{file} holds {described(unexpected, family)}")
        for name, dtype in dtypes.items():
            if dtype not in _DTYPES and not (architecture.is_fp8 and dtype == FP8_DTYPE):
                raise ValueError(
                    f"{file} holds {name} in {dtype}: quantised weights are not loaded, give the "
                    "checkpoint in bfloat16, float16 or float32"
                )


def described(unexpected: Iterable[str], family: str) -> str:
    """The tensor that says most about what these are, and what it is."""
    names = sorted(unexpected)
    for pattern, meaning in _KINDS:
        for name in names:
            if pattern.search(name):
                return f"{name}, {meaning}"
    return f"{names[0]}, which a {family} of its config.json does not have"


def weight_files(checkpoint: Path) -> list[Path]:
    """The safetensors files that transformers loads: one, or those of an index."""
    single, index = checkpoint / "model.safetensors", checkpoint / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [checkpoint / name for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} cannot be read: {error!r}") from error


def _dtypes(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be loaded: {error}") from error
