"""A checkpoint directory: where it is, and what identifies it. Weights are safetensors only."""

import hashlib
import json
import os
from pathlib import Path

from shardrank.actors.config import RerankerConfig
from shardrank.actors.families.choice import family_of, saved_files
from shardrank.actors.families.family import Task
from shardrank.actors.model.architecture import architecture
from shardrank.actors.model.foreign import (
    check_config,
    check_no_adapter,
    check_weights,
)

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def resolve_checkpoint(config: RerankerConfig, weights: bool = True) -> Path:
    """The local directory of the config's checkpoint, downloaded first when that is a hub name;
    of an adapter's folder, that of the base that it names.

    Raises ValueError where it is neither, or holds what would not be read. weights=False fetches
    configuration and tokenizer only.
    """
    adapter = adapter_of(config)
    if adapter is None or config.adapter is not None:
        return _checked(*_directory(config.model, config.revision, weights), config.task)
    base = _base_of(adapter)
    try:
        return _checked(*_directory(base, None, weights), config.task)
    except ValueError as error:
        raise ValueError(
            f"{adapter} is an adapter of {base!r}: {error}; give its base as the model, and this "
            "folder as its adapter"
        ) from error


def adapter_of(config: RerankerConfig) -> Path | None:
    """The folder of the config's adapter, which may stand in the place of the model. Raises
    ValueError where it is none of PEFT's.
    """
    if config.adapter is not None:
        folder, _ = _directory(config.adapter, None, weights=True)
    else:
        folder = Path(os.path.expanduser(config.model))
        if (folder / "config.json").is_file() or not (folder / _ADAPTER_CONFIG).is_file():
            return None
    for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: not an adapter that PEFT saved")
    return folder


def _base_of(adapter: Path) -> str:
    file = adapter / _ADAPTER_CONFIG
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{file} names no base: give that as the model, this folder as its adapter"
        )
    return base


def _directory(model: str, revision: str | None, weights: bool) -> tuple[Path, bool]:
    """A directory, and whether its weights are there to be looked at."""
    path = Path(os.path.expanduser(model))  # Path.expanduser raises where there is no such user
    if path.is_dir():
        return path, True
    if path.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise ValueError(f"model {model!r} is neither a directory nor a hub name (owner/name)")
    from huggingface_hub import snapshot_download  # only hub names need it

    patterns = _FILES if weights else [name for name in _FILES if name != "*.safetensors"]
    try:
        path = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean the same to a user
        raise ValueError(
            f"model {model!r} is not a directory and could not be fetched from the hub: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
        ) from error
    return path, weights


def checkpoint_fingerprint(checkpoint: Path, adapter: Path | None = None) -> dict[str, str]:
    """What identifies a checkpoint: `settings` (SHA-256 of configuration and tokenizer), and
    `weights` (SHA-256 of the safetensors files) or, out of the hub's cache, the `commit`. `saved`,
    of what sentence-transformers keeps beside them; of an adapter, the SHA-256 of its two files.

    The commit names the weights, which need not be on the machine that asks.
    """
    fingerprint = {"settings": _settings(checkpoint)}
    if saved := saved_files(checkpoint):
        fingerprint["saved"] = _combined(saved)
    if adapter is not None:
        files = [adapter / name for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS)]
        fingerprint["adapter"] = _combined(files)
    if checkpoint.parent.name == "snapshots":
        return fingerprint | {"commit": checkpoint.name}
    return fingerprint | {"weights": _combined(sorted(checkpoint.glob("*.safetensors")))}


def checkpoint_outline(checkpoint: Path) -> str:
    """What tells most checkpoints apart without reading weights: the settings' SHA-256, and the
    weights' names and sizes.
    """
    weights = [
        (file.name, file.stat().st_size) for file in sorted(checkpoint.glob("*.safetensors"))
    ]
    return f"{_settings(checkpoint)} {weights}"


def _settings(checkpoint: Path) -> str:
    names = ("config.json", "tokenizer.json", "reranker.json")
    return _combined([checkpoint / name for name in names if (checkpoint / name).is_file()])


def _combined(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked(path: Path, weights: bool, task: Task) -> Path:
    check_no_adapter(path)  # an adapter's directory lacks the files below
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ValueError(f"{path} has no {name}: not a checkpoint of a model to {task} with")
    family = family_of(path, task)
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        described = architecture(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    check_config(path, config, family.name)
    if weights:
        check_weights(path, described, family.name)
    return path
