"""Whether scores are right: the kernel, the official scores, the real shapes."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.acceptance.device import Device, Figures, check, logits_of, prepared_sets
from bench.kernel_cases import HEADS, MAX_LSE_ERROR, MAX_OUTPUT_ERROR, by_formula, errors
from bench.peers.protocol import PeerSettings
from bench.peers.transformers_model import TransformersModel
from bench.processes import ROOT
from bench.workloads import Workload
from shardrank.actors import CandidateSet, QueryOptions, Reranker
from shardrank.actors.model.attention import flash_varlen
from shardrank.actors.model.linear import supports_fp8

GOLDEN = ROOT / "tests" / "golden"


def kernel(device: Device) -> Figures:
    """The attention kernel's output and log-sum-exp against float64."""
    if device.is_cuda:
        found = list(errors(flash_varlen, device.device, HEADS))
    else:  # a stand-in, which is slow
        found = list(errors(by_formula, device.device, HEADS[-1:]))
    wrong = [
        f"{name}: output {output:.1e}, lse {lse:.1e}"
        for name, output, lse in found
        if not (output <= MAX_OUTPUT_ERROR and lse <= MAX_LSE_ERROR)
    ]
    check(not wrong, "; ".join(wrong))
    return {
        "cases": len(found),
        "max_output_error": max(output for _, output, _ in found),
        "max_lse_error": max(lse for _, _, lse in found),
    }


def golden(device: Device) -> Figures:
    """The official scores of a tiny checkpoint, in every dtype, eager and compiled."""
    lines = (GOLDEN / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    # Without files of videos, whose readers are packages that a bare machine lacks.
    cases = [case for case in cases if case["kind"] not in {"error", "vfile", "vmixed"}]
    forms: dict[str, tuple[dict[str, Any], float, float]] = {  # largest and mean difference allowed
        "float32": ({"dtype": "float32", "compile": False}, 1e-4, 1e-4),
        "bfloat16": ({"dtype": "bfloat16", "compile": False}, 0.1, 0.02),
    }
    if device.is_cuda:
        forms["compiled"] = ({"dtype": "bfloat16", "compile": True}, 0.1, 0.02)
        if supports_fp8(device.device):
            fp8 = {"dtype": "bfloat16", "quantization": "fp8", "compile": False}
            forms["fp8"] = (fp8, 1.0, 0.15)
    figures: Figures = {"cases": len(cases)}
    for name, (settings, largest, mean) in forms.items():
        differences = _golden_differences(device, cases, settings)
        average = sum(differences) / len(differences)
        figures[name] = {"max": max(differences), "mean": average}
        check(max(differences) <= largest and average <= mean, f"{name}: {figures[name]}")
    return figures


def _golden_differences(
    device: Device, cases: Sequence[dict[str, Any]], settings: dict[str, Any]
) -> list[float]:
    reranker = Reranker(
        str(GOLDEN / "tiny"),
        device=device.name,
        special_tokens="official",
        empty="official",
        image_depth="official",
        media_root=str(GOLDEN),
        **settings,
    )
    names = ("fps", "max_frames", "max_length")
    sets = [
        CandidateSet.parse(
            case["query"],
            [case["document"]],
            case.get("instruction"),
            QueryOptions(**{name: case[name] for name in names if name in case}),
        )
        for case in cases
    ]
    scores = [pairs[0] for pairs in reranker.score_sets(sets)]
    for pair in scores:
        if pair.error is not None:
            raise pair.error
    return [
        abs((pair.score or 0.0) - case["official"]["score"])
        for pair, case in zip(scores, cases, strict=True)
    ]


def real_shapes(device: Device) -> Figures:
    """Logits of texts and pages: ours in float32 and bfloat16 against transformers' own float32."""
    sets = [
        *device.workload("text", 0.1).head(2, 4).sets,
        *device.workload("pages", 0.05).head(1, 2).sets,
    ]
    part = Workload("real", sets, [])
    plain, plain_16 = (_plain_logits(device, part, dtype) for dtype in ("float32", "bfloat16"))
    reranker = device.reranker("float32", compile=False)
    exact = logits_of(reranker, prepared_sets(reranker, part))
    del reranker
    device.empty()
    warm = device.warm
    prepared = prepared_sets(warm, part)
    together = logits_of(warm, prepared)
    alone = np.array(
        [logits_of(warm, [one.only(i)])[0] for one in prepared for i in range(one.num_pairs)]
    )
    figures = {
        "pairs": len(plain),
        "logit_deviation": float(plain.std()),
        "float32_difference": float(abs(exact - plain).max()),
        "bfloat16_difference": float(abs(together - plain).max()),
        "transformers_bfloat16_difference": float(abs(plain_16 - plain).max()),
        "alone_difference": float(abs(together - alone).max()),
    }
    scale = max(1.0, figures["logit_deviation"])
    check(figures["float32_difference"] <= 1e-3 * scale, f"float32: {figures}")
    bound = 2 * figures["transformers_bfloat16_difference"] + 0.05 * scale
    check(figures["bfloat16_difference"] <= bound, f"bfloat16: {figures}")
    return figures


def _plain_logits(device: Device, part: Workload, dtype: str) -> np.ndarray:
    model = TransformersModel(
        PeerSettings(str(device.checkpoint), device.name, dtype, threads=None)
    )
    states = [model.last_state(one, document) for one in part.sets for document in one["documents"]]
    logits = (torch.stack(states).float() @ model.head).cpu().numpy()
    del model
    device.empty()
    return logits
