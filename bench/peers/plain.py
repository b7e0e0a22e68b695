"""Plain transformers on inputs made by our preprocessor: one pair at a time, as the official script
runs its forward, or in padded batches. The first gives the scores that others are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from bench.checkpoints.random_weights import is_random, random_model, yes_no_ids
from bench.peers.protocol import CandidateSet, Peer, PeerSettings, Unavailable
from shardrank.actors import CandidateSet as Parsed
from shardrank.actors import RerankerConfig
from shardrank.actors.model.vision import patchify
from shardrank.actors.prepared import PreparedPair, PreparedSet
from shardrank.actors.preprocessor import Preprocessor


class PlainModel(Peer):
    """transformers' own Qwen3-VL up to the yes-no logit."""

    def __init__(self, settings: PeerSettings) -> None:
        checkpoint = Path(settings.model)
        self.device = torch.device(settings.device)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        if is_random(checkpoint):
            whole = random_model(checkpoint, self.device, self.dtype)
        else:
            whole = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=self.dtype)
        self.whole = whole.requires_grad_(False).eval().to(self.device)
        self._yes_no = yes_no_ids(checkpoint)
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self._image_token, self._video_token = config["image_token_id"], config["video_token_id"]
        self._config = RerankerConfig(model=settings.model)
        self.forget()

    def forget(self) -> None:
        self._preprocessor = Preprocessor(self._config)

    @property
    def head(self) -> torch.Tensor:
        """(hidden,) float32, so that a logit is head . h."""
        yes, no = self.whole.lm_head.weight[self._yes_no].float()
        return yes - no

    def scores(self, last_states: torch.Tensor) -> list[float]:
        """(B, hidden) normed states of the last tokens to scores."""
        scores: list[float] = torch.sigmoid(last_states.float() @ self.head).tolist()
        return scores

    def prepared(self, one: CandidateSet) -> Iterator[tuple[PreparedSet, PreparedPair]]:
        """Each pair as the engine's own CPU half makes it alone. Raises a pair's RerankError."""
        for document in one["documents"]:
            prepared = self._preprocessor.prepare(Parsed.parse(one["query"], [document]))
            (pair,) = prepared.pairs
            if isinstance(pair, Exception):
                raise pair
            yield prepared, pair

    @torch.inference_mode()
    def last_states(self, one: CandidateSet) -> list[torch.Tensor]:
        """(hidden,) normed state of each pair's last token, one pair at a time."""
        return [self._last_state(*prepared) for prepared in self.prepared(one)]

    def _last_state(self, prepared: PreparedSet, pair: PreparedPair) -> torch.Tensor:
        output = self.whole.model(
            input_ids=torch.from_numpy(pair.input_ids).long()[None].to(self.device),
            position_ids=torch.from_numpy(pair.position_ids).long()[:, None].to(self.device),
            use_cache=False,
            **self._visual_inputs(prepared, pair),
        )
        return output.last_hidden_state[0, -1]

    def _visual_inputs(self, prepared: PreparedSet, pair: PreparedPair) -> dict[str, torch.Tensor]:
        """Patches and grids by kind; visuals in the order in which the pair's tokens name them."""
        inputs: dict[str, torch.Tensor] = {}
        for token, names in (
            (self._image_token, ("pixel_values", "image_grid_thw")),
            (self._video_token, ("pixel_values_videos", "video_grid_thw")),
        ):
            runs = _runs(pair, pair.input_ids == token)
            visuals = [prepared.visuals[index].pixels for index in runs]
            if visuals:
                writable = (np.require(pixels, requirements="W") for pixels in visuals)
                patches = [
                    patchify(torch.from_numpy(pixels).to(self.device), self.dtype)
                    for pixels in writable
                ]
                inputs[names[0]] = torch.cat(patches)
                grids = [[1, v.shape[1] // 16, v.shape[2] // 16] for v in visuals]
                inputs[names[1]] = torch.tensor(grids, device=self.device)
        return inputs


def _runs(pair: PreparedPair, is_kind: Any) -> list[int]:
    """The visual of each placeholder run, in the prompt's order; one used twice comes twice."""
    index = np.where(is_kind, pair.visual_index, -1)
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    return [int(index[start]) for start in starts if index[start] >= 0]


class TransformersOne(PlainModel):
    label = "transformers, pair by pair"

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        return [self.scores(torch.stack(self.last_states(one))) for one in sets]


class TransformersPadded(PlainModel):
    """Batches padded to their longest pair, in input order; text only."""

    label = "transformers, padded batches"
    work = "padded"
    batch_sizes = (8, 32)

    @torch.inference_mode()
    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        contents = [content for one in sets for content in (one["query"], *one["documents"])]
        if any(set(content) - {"text"} for content in contents):
            raise Unavailable("text only")
        ids = [torch.from_numpy(p.input_ids).long() for one in sets for _, p in self.prepared(one)]
        size = self.batch_size or self.batch_sizes[0]
        batches = (ids[start : start + size] for start in range(0, len(ids), size))
        scores = iter([score for batch in batches for score in self._score_batch(batch)])
        return [[next(scores) for _ in one["documents"]] for one in sets]

    def _score_batch(self, ids: list[torch.Tensor]) -> list[float]:
        input_ids = torch.nn.utils.rnn.pad_sequence(
            ids, batch_first=True, padding_value=-1, padding_side="left"
        ).to(self.device)
        mask = (input_ids >= 0).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.whole.model(
            input_ids=input_ids.clamp(min=0),
            attention_mask=mask,
            position_ids=positions.expand(3, -1, -1),
            use_cache=False,
        )
        return self.scores(output.last_hidden_state[:, -1])
