"""Centres a random checkpoint's scores: its yes and no rows are turned and scaled on sample pairs.

A random head row gives every pair about the same logit, because the last token's state has much in
common from pair to pair. Without that common part and at this scale, scores spread over (0, 1).
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from bench.peers.protocol import PeerSettings
from bench.peers.transformers_model import TransformersModel
from bench.random_weights import is_random, write_rows
from bench.words import WordSource

LOGIT_DEVIATION = 2.0
_NUM_QUERIES, _NUM_DOCUMENTS = 4, 6
_NUM_LARGE_DOCUMENTS = 2
"""Of a model whose weights are not written, being large."""
_PASSES = 2
"""Of tied embeddings the two rows are read in the prompt too, so one pass is not exact."""


def centre_scores(directory: Path, device: str) -> None:
    """Rewrite the two rows of the checkpoint's head."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    dtype = config["dtype"] if device != "cpu" else "float32"
    model = TransformersModel(PeerSettings(str(directory), device, dtype, threads=None))
    rows = yes_no_ids(tokenizer)
    head = model.head_weight
    is_large = is_random(directory)
    num_documents = _NUM_LARGE_DOCUMENTS if is_large else _NUM_DOCUMENTS
    for _ in range(_PASSES):
        direction = _centred(model.head, _states(model, tokenizer, num_documents))
        head[rows] = torch.stack((direction / 2, -direction / 2)).to(head.dtype)
        model.head = direction
    if is_large:
        return write_rows(directory, rows, head[rows])
    name = "lm_head.weight"
    if config["tie_word_embeddings"]:
        name = "model.language_model.embed_tokens.weight"
    _write_rows(directory, name, rows, head[rows].cpu())


def yes_no_ids(tokenizer: Tokenizer) -> list[int]:
    ids = [tokenizer.token_to_id(word) for word in ("yes", "no")]
    assert None not in ids
    return [token_id for token_id in ids if token_id is not None]


def _states(model: TransformersModel, tokenizer: Tokenizer, num_documents: int) -> torch.Tensor:
    """(pairs, hidden) float32 last states of some text pairs."""
    words = WordSource("calibration", lambda text: len(tokenizer.encode(text).ids))
    states = []
    for _ in range(_NUM_QUERIES):
        query = {"text": words.text(15)}
        for _ in range(num_documents):
            one = {"query": query, "instruction": None}
            states.append(model.last_state(one, {"text": words.text(100)}))
    return torch.stack(states).float()


def _centred(direction: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    common = states.mean(0)
    direction = direction - common * (direction @ common) / (common @ common)
    return direction * (LOGIT_DEVIATION / (states @ direction).std())


def _write_rows(directory: Path, name: str, rows: list[int], values: torch.Tensor) -> None:
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            is_there = name in opened.keys()  # noqa: SIM118  (no mapping)
        if is_there:
            tensors = load_file(file)
            tensors[name][rows] = values.to(tensors[name].dtype)
            save_file(tensors, file, metadata={"format": "pt"})
