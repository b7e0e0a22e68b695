"""sentence-transformers' CrossEncoder: batches sorted by length, then padded to their longest."""

from __future__ import annotations

from typing import Any

from bench.peers.protocol import CandidateSet, Content, Peer, PeerSettings, Unavailable


class SentenceTransformers(Peer):
    label = "sentence-transformers"
    work = "sorted_padded"
    packages = ("sentence-transformers", "torch", "transformers")
    batch_sizes = (1, 8, 32)

    def __init__(self, settings: PeerSettings) -> None:
        import sentence_transformers
        import torch

        self._model = sentence_transformers.CrossEncoder(
            settings.model,
            device=settings.device,
            model_kwargs={
                "dtype": getattr(torch, settings.dtype),
                "attn_implementation": "sdpa",
            },
            local_files_only=True,
        )

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        pairs = [
            (_content(one["query"]), _content(document))
            for one in sets
            for document in one["documents"]
        ]
        size = self.batch_size or self.batch_sizes[0]
        predicted = self._model.predict(pairs, batch_size=size, show_progress_bar=False)
        scores = iter(predicted.tolist())
        return [[next(scores) for _ in one["documents"]] for one in sets]


def _content(content: Content) -> dict[str, Any]:
    """Always a dictionary: a bare string that looks like a file's name would be opened as one.
    An image is opened, not read, so that the library can sort by its size.
    """
    from PIL import Image

    if "video" in content:
        raise Unavailable("sentence-transformers writes another prompt for a video")
    return {"image": [Image.open(content["image"])]} if "image" in content else content
