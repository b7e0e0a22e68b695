"""sentence-transformers' CrossEncoder: batches sorted by length, then padded to their longest."""

from __future__ import annotations

import importlib.util
from typing import Any

from bench.peers.instructions import score_by_instruction
from bench.peers.protocol import (
    CandidateSet,
    Content,
    PeerSettings,
    Unavailable,
    serve,
)
from bench.peers.torchvision_operators import declare_missing_operators


class SentenceTransformers:
    label = "sentence-transformers"
    work = "sorted_padded"
    batch_sizes = (1, 8, 32)

    def __init__(self, settings: PeerSettings) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise Unavailable("sentence-transformers is not installed here")
        declare_missing_operators()
        import sentence_transformers
        import torch
        import transformers

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.batch_size = settings.batch_size or self.batch_sizes[0]
        self._model = sentence_transformers.CrossEncoder(
            settings.model,
            device=settings.device,
            model_kwargs={
                "dtype": getattr(torch, settings.dtype),
                "attn_implementation": "sdpa",
            },
            local_files_only=True,
        )
        self.versions = {
            "sentence-transformers": sentence_transformers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        return score_by_instruction(sets, self._score)

    def _score(self, sets: list[CandidateSet], instruction: str | None) -> list[float]:
        pairs = [
            (_content(one["query"]), _content(document))
            for one in sets
            for document in one["documents"]
        ]
        predicted: list[float] = self._model.predict(
            pairs, prompt=instruction, batch_size=self.batch_size, show_progress_bar=False
        ).tolist()
        return predicted


def _content(content: Content) -> dict[str, Any]:
    """The library takes the parts in the dictionary's order, which is the prompt's here.

    Always a dictionary: a bare string that looks like a file's name would be opened as one.
    An image is opened, not read, so that the library can sort by its size.
    """
    from PIL import Image

    if content.get("video") is not None:
        raise Unavailable("sentence-transformers writes another prompt for a video")
    paths = content.get("image") or []
    images = [Image.open(path) for path in ([paths] if isinstance(paths, str) else paths)]
    text = content.get("text")
    if text is None and not images:
        text = "NULL"
    return ({"image": images} if images else {}) | ({} if text is None else {"text": text})


if __name__ == "__main__":
    serve(SentenceTransformers)
