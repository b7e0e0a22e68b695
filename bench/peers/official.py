"""The model authors' own script, unchanged, from the user's copy: one pair at a time.

`extra["official"]` is the path of the copy of src/models/qwen3_vl_reranker.py.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from bench.peers.protocol import (
    CandidateSet,
    Content,
    PeerSettings,
    Unavailable,
    serve,
)
from bench.peers.torchvision_operators import declare_missing_operators


class Official:
    label = "official script"
    work = "one_by_one"

    def __init__(self, settings: PeerSettings) -> None:
        _check_installed(settings.extra.get("official"))
        declare_missing_operators()
        import torch
        import transformers

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        script = _load(settings.extra["official"])
        self._reranker = script.Qwen3VLReranker(
            settings.model, torch_dtype=getattr(torch, settings.dtype)
        )
        if self._reranker.model.device.type != settings.device.partition(":")[0]:
            raise Unavailable(
                f"the official script chose {self._reranker.model.device}, not {settings.device}"
            )
        self._complaints = _Complaints()
        script.logger.addHandler(self._complaints)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        return [self._score_set(one) for one in sets]

    def _score_set(self, one: CandidateSet) -> list[float]:
        self._complaints.messages.clear()
        scores: list[float] = self._reranker.process(
            {
                "instruction": one["instruction"],
                "query": _content(one["query"]),
                "documents": [_content(document) for document in one["documents"]],
            }
        )
        if self._complaints.messages:
            raise ValueError(f"the official script scored NULL: {self._complaints.messages[0]}")
        return scores


class _Complaints(logging.Handler):
    """The script logs a medium that it cannot read, and scores the word NULL in its place."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _check_installed(path: str | None) -> None:
    if path is None:
        raise Unavailable("give the path of your copy of qwen3_vl_reranker.py by --official")
    if not Path(path).is_file():
        raise Unavailable(f"there is no official script at {path}")
    if importlib.util.find_spec("qwen_vl_utils") is None:
        raise Unavailable("the official script needs qwen-vl-utils, which is not installed here")


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("official_qwen3_vl_reranker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _content(content: Content) -> dict[str, Any]:
    """The script takes a frame list bare and assumes its own rate of 2 frames a second."""
    video = content.get("video")
    if not isinstance(video, dict):
        return content
    if video["fps"] not in (None, 2.0):
        raise Unavailable("the official script takes a frame list at 2 frames a second only")
    return {**content, "video": video["frames"]}


if __name__ == "__main__":
    serve(Official)
