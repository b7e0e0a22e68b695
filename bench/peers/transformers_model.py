"""transformers' own Qwen3-VL on inputs made by our preprocessor, up to the yes-no logit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.protocol import CandidateSet, PeerSettings

if TYPE_CHECKING:
    import torch

    from shardrank.actors.prepared import PreparedPair, PreparedSet


class TransformersModel:
    """The base model and the yes-no row in float32; prepares pairs as the engine does."""

    def __init__(self, settings: PeerSettings) -> None:
        import torch
        from tokenizers import Tokenizer
        from transformers import Qwen3VLForConditionalGeneration

        from bench.random_weights import is_random, random_model
        from shardrank.actors import RerankerConfig
        from shardrank.actors.preprocessor import Preprocessor

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        checkpoint = Path(settings.model)
        self.device = torch.device(settings.device)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        if is_random(checkpoint):
            model = random_model(checkpoint, self.device, self.dtype)
        else:
            model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=self.dtype)
        self.model = model.requires_grad_(False).eval().to(self.device).model
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.head_weight = model.lm_head.weight
        yes, no = (self.head_weight[tokenizer.token_to_id(word)] for word in ("yes", "no"))
        self.head = yes.float() - no.float()
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self._image_token, self._video_token = config["image_token_id"], config["video_token_id"]
        self._config = RerankerConfig(model=settings.model)
        self._preprocessor = Preprocessor(self._config)

    def forget(self) -> None:
        """Drops decoded pixels and tokenised texts."""
        from shardrank.actors.preprocessor import Preprocessor

        self._preprocessor = Preprocessor(self._config)

    def prepare(self, one: CandidateSet, document: Any) -> PreparedSet:
        """The candidate set of one document, as the engine's own CPU half makes it."""
        from shardrank.actors import CandidateSet as Parsed

        parsed = Parsed.parse(one["query"], [document], one["instruction"])
        return self._preprocessor.prepare(parsed)

    def last_state(self, one: CandidateSet, document: Any) -> torch.Tensor:
        """(hidden,) normed state of one pair's last token. Raises the pair's RerankError."""
        import torch

        prepared = self.prepare(one, document)
        pair = prepared.pairs[0]
        if isinstance(pair, Exception):
            raise pair
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(pair.input_ids).long()[None].to(self.device),
                position_ids=torch.from_numpy(pair.position_ids).long()[:, None].to(self.device),
                use_cache=False,
                **self._visual_inputs(prepared, pair),
            )
        return output.last_hidden_state[0, -1]

    def _visual_inputs(self, prepared: PreparedSet, pair: PreparedPair) -> dict[str, torch.Tensor]:
        """Patches and grids by kind; visuals in the order in which the pair's tokens name them."""
        import torch

        inputs: dict[str, torch.Tensor] = {}
        for token, names in (
            (self._image_token, ("pixel_values", "image_grid_thw")),
            (self._video_token, ("pixel_values_videos", "video_grid_thw")),
        ):
            visuals = [
                prepared.visuals[index].pixels for index in _runs(pair, pair.input_ids == token)
            ]
            if visuals:
                inputs[names[0]] = torch.cat([self._patches(pixels) for pixels in visuals])
                grids = [[1, v.shape[1] // 16, v.shape[2] // 16] for v in visuals]
                inputs[names[1]] = torch.tensor(grids, device=self.device)
        return inputs

    def _patches(self, pixels: Any) -> torch.Tensor:
        import numpy as np
        import torch

        from shardrank.actors.model.vision import patchify

        writable = torch.from_numpy(np.require(pixels, requirements="W"))
        return patchify(writable.to(self.device), self.dtype)

    def scores(self, last_hidden: torch.Tensor) -> list[float]:
        """(B, hidden) normed states of the last tokens to scores."""
        import torch

        scores: list[float] = torch.sigmoid(last_hidden.float() @ self.head).tolist()
        return scores


def _runs(pair: PreparedPair, is_kind: Any) -> list[int]:
    """The visual of each placeholder run, in the prompt's order; one used twice comes twice."""
    import numpy as np

    index = np.where(is_kind, pair.visual_index, -1)
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    return [int(index[start]) for start in starts if index[start] >= 0]
