"""Writes a preset's checkpoint in Qwen3-VL's own layout.

Random, but alive: activations keep their size from layer to layer, and scores spread over (0, 1),
so that comparing the scores of two implementations says something.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.checkpoints.presets import FILES, PRESETS, config_of
from bench.checkpoints.random_weights import ROWS_FILE, SEED_FILE, yes_no_ids
from bench.peers.plain import PlainModel
from bench.peers.protocol import PeerSettings
from bench.workloads import Drawing, build_workload

_TOKENIZER = Path(__file__).parents[2] / "demo" / "model" / "tokenizer.json"
_FINISHED = ".finished"
_LOGIT_DEVIATION = 2.0
_PASSES = 2  # the two rows of tied embeddings are read in the prompt too: one is not exact


def build(
    preset: str,
    directory: Path,
    seed: int = 0,
    device: str = "cpu",
    has_weights: bool | None = None,
) -> Path:
    """Write a checkpoint, or leave the finished one that is there. Weights are made on `device`.

    has_weights False: only their seed is written (random_weights.py). None: as the preset says.
    """
    finished = directory / _FINISHED
    if finished.exists():
        return directory
    write_outline(preset, directory, seed)
    dtype = PRESETS[preset].dtype if device != "cpu" else "float32"
    model = PlainModel(PeerSettings(str(directory), device, dtype, threads=None))
    _centre_scores(model, directory, num_documents=6 if PRESETS[preset].is_written else 2)
    if PRESETS[preset].is_written if has_weights is None else has_weights:
        model.whole.to(getattr(torch, PRESETS[preset].dtype)).save_pretrained(directory)
        write_outline(preset, directory)  # the library's own config.json has the form of 5.x alone
        for name in (SEED_FILE, ROWS_FILE):
            (directory / name).unlink()
    finished.touch()
    return directory


def write_outline(preset: str, directory: Path, seed: int = 0) -> None:
    """Everything but the weights: tokenizer, configuration, other implementations' files, seed."""
    shutil.copytree(FILES, directory, dirs_exist_ok=True)
    shutil.copy(_TOKENIZER, directory)
    (directory / SEED_FILE).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")
    config = json.dumps(config_of(preset), indent=1) + "\n"
    (directory / "config.json").write_text(config, encoding="utf-8")


def _centre_scores(model: PlainModel, directory: Path, num_documents: int) -> None:
    """Turn and scale the yes and no rows on pairs of texts, so that scores spread over (0, 1).

    A random row of the head gives every pair about the same logit, because the states of last
    tokens have much in common. The rows are turned away from that common part.
    """
    head, ids = model.whole.lm_head.weight, yes_no_ids(directory)
    sets = build_workload("text", Drawing.of(directory, scale=0.2)).head(4, num_documents).sets
    for _ in range(_PASSES):
        states = torch.stack([state for one in sets for state in model.last_states(one)]).float()
        direction, common = model.head, states.mean(0)
        direction = direction - common * (direction @ common) / (common @ common)
        direction = direction * (_LOGIT_DEVIATION / (states @ direction).std())
        head[ids] = torch.stack((direction / 2, -direction / 2)).to(head.dtype)
    save_file({"yes_no": head[ids].cpu()}, directory / ROWS_FILE)
