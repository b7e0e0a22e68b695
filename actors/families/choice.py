"""Which of the families a checkpoint is of, by its own files and the task."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardrank.actors.families import saved
from shardrank.actors.families.family import Family, Task
from shardrank.actors.families.qwen3_embedding import QWEN3_EMBEDDING
from shardrank.actors.families.qwen3_reranker import QWEN3_RERANKER
from shardrank.actors.families.qwen3_vl_embedding import QWEN3_VL_EMBEDDING
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER

FAMILIES = (QWEN3_VL_RERANKER, QWEN3_VL_EMBEDDING, QWEN3_RERANKER, QWEN3_EMBEDDING)


def family_of(checkpoint: Path, task: Task) -> Family:
    """The family of a checkpoint directory. Raises ValueError naming what it is instead."""
    file = checkpoint / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}") from error
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
    saved.check_modules(checkpoint, family.task)
