"""Plain transformers, one pair at a time, as the official script runs its forward.

The scores that every other peer is compared with.
"""

from __future__ import annotations

from bench.peers.ours import versions
from bench.peers.protocol import CandidateSet, PeerSettings, serve
from bench.peers.transformers_model import TransformersModel


class TransformersOne:
    label = "transformers, pair by pair"
    work = "one_by_one"

    def __init__(self, settings: PeerSettings) -> None:
        self._model = TransformersModel(settings)
        self.versions = versions()

    def forget(self) -> None:
        self._model.forget()

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        model = self._model
        return [
            [
                model.scores(model.last_state(one, document)[None])[0]
                for document in one["documents"]
            ]
            for one in sets
        ]


if __name__ == "__main__":
    serve(TransformersOne)
