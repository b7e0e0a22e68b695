"""Which of the families a checkpoint is of, by its own files and the task, and what else it says of
itself in the files that sentence-transformers saves: tokens, prompts, pooling.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardrank.actors.families.family import Family, Task
from shardrank.actors.families.qwen3_embedding import QWEN3_EMBEDDING
from shardrank.actors.families.qwen3_reranker import QWEN3_RERANKER
from shardrank.actors.families.qwen3_vl_embedding import QWEN3_VL_EMBEDDING
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER

FAMILIES = (QWEN3_VL_RERANKER, QWEN3_VL_EMBEDDING, QWEN3_RERANKER, QWEN3_EMBEDDING)

_SETTINGS = "config_sentence_transformers.json"
_ACTIVATIONS = ("Sigmoid", "Identity")
"""Of a score: what is written is the logit and its sigmoid, whichever of them it is."""
_QUERY_PROMPT = re.compile(r"Instruct: (.*)\nQuery:", re.DOTALL)


def read_config(checkpoint: Path) -> dict[str, Any]:
    """config.json. Raises ValueError where it is none."""
    file = checkpoint / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config["model_type"], str):
            raise TypeError("model_type is no string")
        return config
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error


def family_of(checkpoint: Path, task: Task) -> Family:
    """The family of a checkpoint directory. Raises ValueError naming what it is instead."""
    config = read_config(checkpoint)
    model_type = config["model_type"]
    fitting = [each for each in FAMILIES if each.model_type == model_type and each.task == task]
    if not fitting:
        named = sorted({each.model_type for each in FAMILIES})
        known = ", ".join(each.name for each in FAMILIES if each.task == task)
        raise ValueError(
            f"{checkpoint} holds a {model_type!r} model, not {' or '.join(named)}: one of {known}"
        )
    _check_task(checkpoint, config, fitting[0])
    return fitting[0]


def _check_task(checkpoint: Path, config: Mapping[str, Any], family: Family) -> None:
    """The weights of an embedder and of a reranker have the same names and shapes: what else the
    checkpoint says of itself must not speak against the task.
    """
    others = [name for name in config.get("architectures") or () if name not in family.classes]
    if others:
        raise ValueError(
            f"{checkpoint / 'config.json'} names the architecture {others[0]}: of a {family.name} "
            f"only {', '.join(sorted(family.classes))} are read"
        )
    _check_modules(checkpoint, family.task)


def _check_modules(checkpoint: Path, task: Task) -> None:
    """Embedder and reranker have weights of the same names: raises ValueError where what the
    checkpoint says of itself speaks against the task, or asks for what is not computed.
    """
    for name, folder in _modules(checkpoint):
        if name == "Pooling" and task == "rerank":
            raise ValueError(
                f"{checkpoint / 'modules.json'} has a Pooling: an embedder, no reranker"
            )
        if name == "LogitScore" and task == "embed":
            raise ValueError(
                f"{checkpoint / 'modules.json'} has a LogitScore: a reranker, no embedder"
            )
        if name == "Pooling":
            _check_pooling(folder / "config.json")
    config = read_config(checkpoint)
    older = (config.get("sentence_transformers") or {}).get("activation_fn")
    activation = _settings(checkpoint).get("activation_fn") or older
    activation = activation or config.get("sbert_ce_default_activation_function")
    if activation is not None and str(activation).rpartition(".")[2] not in _ACTIVATIONS:
        raise ValueError(
            f"{checkpoint} has the activation {activation!r}: only a sigmoid is computed"
        )


def saved_files(checkpoint: Path) -> list[Path]:
    """Those of sentence-transformers' files that decide on a result."""
    folders = [folder for name, folder in _modules(checkpoint) if name == "LogitScore"]
    files = [checkpoint / _SETTINGS, *(folder / "config.json" for folder in folders)]
    return [file for file in files if file.is_file()]


def score_tokens(checkpoint: Path) -> tuple[int, int | None] | None:
    """The tokens whose logits' difference is the score, by a LogitScore; the second may be none.

    None where there is no such module, or its folder is not there, as of Qwen3-VL-Reranker-8B.
    """
    for name, folder in _modules(checkpoint):
        if name == "LogitScore" and (folder / "config.json").is_file():
            config = _read(folder / "config.json")
            yes, no = config.get("true_token_id"), config.get("false_token_id")
            if not isinstance(yes, int) or not isinstance(no, int | None):
                raise ValueError(f"{folder / 'config.json'} names no tokens: {config}")
            return yes, no
    return None


def own_instruction(checkpoint: Path, task: Task) -> str | None:
    """The instruction that the model was saved with as its default, if it was. Raises ValueError
    for an embedder of texts that was saved with prompts of another form.
    """
    settings = _settings(checkpoint)
    prompts = settings.get("prompts")
    if not isinstance(prompts, Mapping):
        return None
    if task == "rerank":
        prompt = prompts.get(settings.get("default_prompt_name"))
        return prompt if isinstance(prompt, str) and prompt else None
    query, document = (prompts.get(name) or "" for name in ("query", "document"))
    found = _QUERY_PROMPT.fullmatch(str(query))
    is_text = read_config(checkpoint).get("model_type") == QWEN3_EMBEDDING.model_type
    if is_text and (document or (query and not found)):
        raise ValueError(
            f"{checkpoint / _SETTINGS} has the prompts {query!r} and {document!r}: "
            "a Qwen3-Embedding has 'Instruct: ...\\nQuery:' and none"
        )
    return found[1] if found else None


def _check_pooling(file: Path) -> None:
    config = _read(file) if file.is_file() else {}
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    modes += [f"pooling_mode_{config['pooling_mode']}"] if "pooling_mode" in config else []
    others = [name for name in modes if name != "pooling_mode_lasttoken"]
    if others:
        raise ValueError(f"{file} has {others[0]}: only the last token's state is a vector here")


def _modules(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    """(class, folder) of each module."""
    file = checkpoint / "modules.json"
    if not file.is_file():
        return
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        modules = [(str(each.get("type")), checkpoint / each["path"]) for each in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    for kind, folder in modules:  # the modules' places changed over the versions
        yield kind.rpartition(".")[2], folder


def _settings(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / _SETTINGS
    return _read(file) if file.is_file() else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} cannot be read: no object")
    return content
