"""The device to accept, with a random model of the preset on it."""

import gc
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.checkpoints.build import build
from bench.checkpoints.presets import PRESETS
from bench.checkpoints.random_weights import load_random
from bench.workloads import Drawing, Workload, build_workload
from shardrank.actors import CandidateSet, Reranker
from shardrank.actors.prepared import PreparedSet

Figures = dict[str, Any]


class Device:
    """The device with the preset's model on it: built when first wanted, in a temporary folder.

    done: the steps' figures so far.
    """

    def __init__(self, preset: str, name: str, directory: Path, done: dict[str, Figures]) -> None:
        self.preset, self.name = preset, name
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"
        self._directory = directory
        self.done = done

    @property
    def checkpoint(self) -> Path:
        return build(self.preset, self._directory / "model", device=self.name, has_weights=False)

    def reranker(self, dtype: str = "bfloat16", **settings: Any) -> Reranker:
        return Reranker(
            str(self.checkpoint), load=load_random, device=self.name, dtype=dtype, **settings
        )

    @cached_property
    def warm(self) -> Reranker:
        """In bfloat16, compiled where that is the default; one for all steps."""
        reranker = self.reranker()
        reranker.scorer.warm_up()
        return reranker

    def workload(self, name: str, scale: float) -> Workload:
        drawing = Drawing.of(
            self.checkpoint,
            self._directory / "media",
            scale=scale if self.is_cuda else 0.05,
            page_tokens=PRESETS[self.preset].page_tokens,
        )
        return build_workload(name, drawing)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def empty(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where there is none

    def seconds(self, run: Callable[[], Any], repeats: int = 3, warm_ups: int = 1) -> float:
        """The mean of one call."""
        for _ in range(warm_ups):
            run()
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        self.synchronize()
        return (time.perf_counter() - started) / repeats


def prepared_sets(reranker: Reranker, work: Workload) -> list[PreparedSet]:
    return [
        reranker.preprocessor.prepare(CandidateSet.parse(one["query"], one["documents"]))
        for one in work.sets
    ]


def logits_of(reranker: Reranker, prepared: list[PreparedSet]) -> np.ndarray:
    """Raises a pair's error: there is none to expect."""
    pairs = sum(reranker.scorer.score(prepared), [])
    for pair in pairs:
        if pair.error is not None:
            raise pair.error
    return np.array([pair.logit for pair in pairs])


def num_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
