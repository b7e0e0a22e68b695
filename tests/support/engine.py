"""The tiny random checkpoint and the official scores that the engine's tests share."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from shardrank.actors import CandidateSet, QueryOptions, Reranker

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny"

torch.set_num_threads(1)


@cache
def tiny_reranker(**settings: Any) -> Reranker:
    return Reranker(str(TINY), media_root=str(GOLDEN), **settings)


@cache
def golden_cases() -> list[dict[str, Any]]:
    lines = (GOLDEN / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def candidate_set(case: dict[str, Any]) -> CandidateSet:
    options = {key: case[key] for key in ("fps", "max_frames", "max_length") if key in case}
    return CandidateSet.parse(
        case["query"], [case["document"]], case.get("instruction"), QueryOptions(**options)
    )
