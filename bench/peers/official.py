"""The model authors' own script, unchanged, from the user's copy: one pair at a time.

`extra["official"]` is the path of the copy of src/models/qwen3_vl_reranker.py.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from bench.peers.protocol import CandidateSet, Content, Peer, PeerSettings, Unavailable


class Official(Peer):
    label = "official script"

    def __init__(self, settings: PeerSettings) -> None:
        script = _load(settings.extra.get("official"))
        import torch

        self._reranker = script.Qwen3VLReranker(
            settings.model, torch_dtype=getattr(torch, settings.dtype)
        )
        chosen = self._reranker.model.device
        if chosen.type != settings.device.partition(":")[0]:
            raise Unavailable(f"the official script chose {chosen}, not {settings.device}")
        script.logger.addHandler(_Complaints(logging.ERROR))

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        return [
            self._reranker.process(
                {
                    "instruction": None,
                    "query": _content(one["query"]),
                    "documents": [_content(document) for document in one["documents"]],
                }
            )
            for one in sets
        ]


class _Complaints(logging.Handler):
    """The script logs a medium that it cannot read, and scores the word NULL in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError(f"the official script scored NULL: {record.getMessage()}")


def _load(path: str | None) -> Any:
    if path is None:
        raise Unavailable("give the path of your copy of qwen3_vl_reranker.py by --official")
    if not Path(path).is_file():
        raise Unavailable(f"there is no official script at {path}")
    spec = importlib.util.spec_from_file_location("official_qwen3_vl_reranker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _content(content: Content) -> dict[str, Any]:
    """The script takes a frame list bare and assumes its own rate of 2 frames a second."""
    if "video" not in content:
        return content
    assert content["video"]["fps"] == 2.0
    return {"video": content["video"]["frames"]}
