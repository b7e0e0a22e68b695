"""Everything that the benchmark's command says, checked once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.presets import NAMES, PRESETS

OURS = "ours"
OURS_ONE = "ours_one"
REFERENCE = "transformers_one"
PEERS = ("official", "sentence_transformers", "vllm", REFERENCE, "transformers_padded")
IN_MEMORY = (OURS, OURS_ONE, REFERENCE, "transformers_padded")
"""Those that need no files of a random checkpoint's weights."""
SCORED = ("text", "long-query", "image-query", "pages", "mixed", "video")
OTHERS = ("job", "memory", "preprocess")
MAX_SCORE_DIFFERENCE = 1e-4
"""In float32, to plain transformers one pair at a time."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Raises ValueError on what cannot be run.

    model: a local checkpoint in the preset's place; page_tokens and dtype None: the preset's and
    the device's own. time_limit_s: of one workload, all implementations and rounds together; peers
    whose speed does not depend on how many pairs they get are then timed on a part of them.
    engine: our engine's other settings (RerankerConfig's fields).
    alone: one implementation in memory at a time, as a GPU's memory may want it.
    """

    workdir: Path
    preset: str = "mid"
    model: str | None = None
    workloads: tuple[str, ...] = (*SCORED, "job")
    peers: tuple[str, ...] = PEERS
    peer_pythons: dict[str, str] = field(default_factory=dict)
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
    json_file: str | None = None

    def __post_init__(self) -> None:
        _check("--preset", [self.preset], NAMES)
        _check("--workloads", self.workloads, (*SCORED, *OTHERS))
        _check("--peers", self.peers, PEERS)
        _check("--peer-python", self.peer_pythons, (OURS, OURS_ONE, *PEERS))
        if self.profile is not None:
            _check("--profile", [self.profile], SCORED)
        for name in ("rounds", "scale", "page_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be above zero, got {getattr(self, name)}"
                )
        if self.model is not None and not Path(self.model).is_dir():
            raise ValueError(f"--model must be a local checkpoint directory, got {self.model}")

    @property
    def has_files(self) -> bool:
        """Whether the weights are files, which other libraries and the job read."""
        return self.model is not None or PRESETS[self.preset].is_written

    @property
    def scored(self) -> tuple[str, ...]:
        return tuple(name for name in self.workloads if name in SCORED)


def _check(option: str, given: object, known: tuple[str, ...]) -> None:
    assert isinstance(given, list | tuple | dict)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{option}: unknown {unknown[0]!r}; known: {', '.join(known)}")
