"""A checkpoint directory: where it is, and what identifies it. Weights are safetensors only."""

import hashlib
import json
import os
from pathlib import Path

from shardrank.actors.model.architecture import architecture
from shardrank.actors.model.foreign import (
    check_config,
    check_no_adapter,
    check_weights,
)

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


def resolve_checkpoint(model: str, revision: str | None = None, weights: bool = True) -> Path:
    """The local directory of a checkpoint, downloaded first when `model` is a hub name.

    Raises ValueError where it is neither, or holds what would not be read. weights=False fetches
    configuration and tokenizer only.
    """
    path = Path(os.path.expanduser(model))  # Path.expanduser raises where there is no such user
    if path.is_dir():
        return _checked(path)
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
    return _checked(path, weights)


def checkpoint_fingerprint(checkpoint: Path) -> dict[str, str]:
    """What identifies a checkpoint: `settings` (SHA-256 of configuration and tokenizer), and
    `weights` (SHA-256 of the safetensors files) or, out of the hub's cache, the `commit`.

    The commit names the weights, which need not be on the machine that asks.
    """
    fingerprint = {"settings": _settings(checkpoint)}
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


def _checked(path: Path, weights: bool = True) -> Path:
    check_no_adapter(path)  # an adapter's directory lacks the files below
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ValueError(f"{path} has no {name}: not a Qwen3-VL-Reranker checkpoint")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        model_type, expected = config["model_type"], architecture(config).shapes()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / 'config.json'} cannot be read: {error!r}") from error
    if model_type != "qwen3_vl":
        raise ValueError(f"{path} holds a {model_type!r} model, not a qwen3_vl reranker")
    check_config(path, config)
    if weights:
        check_weights(path, expected.keys())
    return path
