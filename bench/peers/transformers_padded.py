"""Plain transformers on batches padded to their longest pair, in input order; text only."""

from __future__ import annotations

from bench.peers.ours import versions
from bench.peers.protocol import CandidateSet, PeerSettings, Unavailable, serve
from bench.peers.transformers_model import TransformersModel


class TransformersPadded:
    label = "transformers, padded batches"
    work = "padded"
    batch_sizes = (8, 32)

    def __init__(self, settings: PeerSettings) -> None:
        self.batch_size = settings.batch_size or self.batch_sizes[0]
        self._model = TransformersModel(settings)
        self.versions = versions()

    def forget(self) -> None:
        self._model.forget()

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        import torch

        pairs = [(one, document) for one in sets for document in one["documents"]]
        if any(
            set(side) - {"text"} for one, document in pairs for side in (one["query"], document)
        ):
            raise Unavailable("text only")
        scores: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(pairs), self.batch_size):
                scores += self._score_batch(pairs[start : start + self.batch_size])
        flat = iter(scores)
        return [[next(flat) for _ in one["documents"]] for one in sets]

    def _score_batch(self, batch: list[tuple[CandidateSet, dict[str, str]]]) -> list[float]:
        import torch

        ids = []
        for one, document in batch:
            pair = self._model.prepare(one, document).pairs[0]
            if isinstance(pair, Exception):
                raise pair
            ids.append(pair.input_ids)
        longest = max(map(len, ids))
        input_ids = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros(len(ids), longest, dtype=torch.long)
        for row, tokens in enumerate(ids):
            input_ids[row, longest - len(tokens) :] = torch.from_numpy(tokens)
            mask[row, longest - len(tokens) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self._model.model(
            input_ids=input_ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            position_ids=positions.expand(3, -1, -1).to(self._model.device),
            use_cache=False,
        )
        return self._model.scores(output.last_hidden_state[:, -1])


if __name__ == "__main__":
    serve(TransformersPadded)
