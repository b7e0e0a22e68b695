"""What the benchmark is asked for, and the names that it knows."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.checkpoints.presets import PRESETS
from bench.peers.protocol import PeerSettings

OURS = "ours"
OURS_ONE = "ours_one"
REFERENCE = "transformers_one"
CLASSES = {
    OURS: "bench.peers.ours:Ours",
    OURS_ONE: "bench.peers.ours:OursOne",
    "official": "bench.peers.official:Official",
    "sentence_transformers": "bench.peers.sentence_transformers:SentenceTransformers",
    "vllm": "bench.peers.vllm:Vllm",
    REFERENCE: "bench.peers.plain:TransformersOne",
    "transformers_padded": "bench.peers.plain:TransformersPadded",
}
PEERS = tuple(CLASSES)[2:]
FROM_FILES = ("official", "sentence_transformers", "vllm")  # which read weights
SCORED = ("text", "long-query", "image-query", "pages", "mixed", "video")
OTHERS = ("job", "memory", "preprocess")
MAX_SCORE_DIFFERENCE = 1e-4  # in float32, to plain transformers one pair at a time


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """The command's options, __main__.py.

    model: a local checkpoint in the preset's place. time_limit_s: of one workload, all
    implementations and rounds together; peers whose speed does not depend on how many pairs they
    get are then timed on a part of them. engine: our engine's other settings (RerankerConfig's
    fields). alone: one implementation in memory at a time, as a GPU's memory may want it.
    """

    workdir: Path
    preset: str = "mid"
    model: str | None = None
    workloads: tuple[str, ...] = (*SCORED, "job")
    peers: tuple[str, ...] = PEERS
    peer_python: dict[str, str] = field(default_factory=dict)
    official: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = 1
    max_batch_tokens: int | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    rounds: int = 3
    scale: float = 1.0
    page_tokens: int = 300
    seed: int = 0
    time_limit_s: float | None = None
    alone: bool = False
    profile: str | None = None
    json: str | None = None

    @property
    def has_files(self) -> bool:
        """Whether the weights are files, which other libraries and the job read."""
        return self.model is not None or PRESETS[self.preset].is_written

    def of_peer(self, name: str, checkpoint: Path) -> PeerSettings:
        own = {OURS: self.engine, OURS_ONE: self.engine, "official": {"official": self.official}}
        return PeerSettings(
            str(checkpoint),
            self.device,
            self.dtype,
            self.threads,
            self.max_batch_tokens,
            own.get(name, {}),
        )

    def log(self, name: str) -> Path:
        return self.workdir / "logs" / f"{name}.log"


def names_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that is a comma-separated list, all or none."""

    def names(text: str) -> tuple[str, ...]:
        if text in ("all", "none"):
            return known if text == "all" else ()
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {name!r}; known: {', '.join(known)}")
        return tuple(text.split(","))

    return names
