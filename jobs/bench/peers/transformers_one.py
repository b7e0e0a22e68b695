"""Plain transformers, one pair at a time, as the official script runs its forward.

The scores that every other peer is compared with.
"""

from __future__ import annotations

from typing import Any

from jobs.bench.peers.ours import versions
from jobs.bench.peers.protocol import CandidateSet, PeerSettings, serve
from jobs.bench.peers.transformers_model import TransformersModel


class TransformersOne:
    label = "transformers, pair by pair"
    work = "one_by_one"

    def __init__(self, settings: PeerSettings) -> None:
        self._model = TransformersModel(settings)
        self.versions = versions()

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            return [
                [self._score_pair(one, document) for document in one["documents"]] for one in sets
            ]

    def _score_pair(self, one: CandidateSet, document: Any) -> float:
        import torch

        model = self._model
        prepared = model.prepare(one, document)
        pair = prepared.pairs[0]
        if isinstance(pair, Exception):
            raise pair
        output = model.model(
            input_ids=torch.from_numpy(pair.input_ids).long()[None].to(model.device),
            position_ids=torch.from_numpy(pair.position_ids).long()[:, None].to(model.device),
            use_cache=False,
            **model.visual_inputs(prepared, pair),
        )
        return model.scores(output.last_hidden_state[:, -1])[0]


if __name__ == "__main__":
    serve(TransformersOne)
