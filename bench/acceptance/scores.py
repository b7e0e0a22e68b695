"""Whether scores are right: the kernel, the official scores, the real shapes."""

from typing import Any

import numpy as np
import torch

from bench.acceptance.device import Device, Figures, check, logits_of, prepared_sets
from bench.acceptance.kernel import HEADS, MAX_LSE_ERROR, MAX_OUTPUT_ERROR, by_formula, errors
from bench.peers.ours import scores_of
from bench.peers.plain import PlainModel
from bench.peers.protocol import PeerSettings
from bench.workloads import Workload
from shardrank.actors import Reranker
from shardrank.actors.model.attention import flash_varlen
from shardrank.actors.model.linear import supports_fp8


def kernel(device: Device) -> Figures:
    """The attention kernel's output and log-sum-exp against float64."""
    tried = (flash_varlen, HEADS) if device.is_cuda else (by_formula, HEADS[-1:])  # a slow stand-in
    found = list(errors(tried[0], device.device, tried[1]))
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
    forms: dict[str, tuple[dict[str, Any], float, float]] = {  # largest and mean difference allowed
        "float32": ({"dtype": "float32", "compile": False}, 1e-4, 1e-4),
        "bfloat16": ({"dtype": "bfloat16", "compile": False}, 0.1, 0.02),
    }
    if device.is_cuda:
        forms["compiled"] = ({"dtype": "bfloat16", "compile": True}, 0.1, 0.02)
        if supports_fp8(device.device):
            fp8 = {"dtype": "bfloat16", "quantization": "fp8", "compile": False}
            forms["fp8"] = (fp8, 1.0, 0.15)
    figures: Figures = {}
    for name, (settings, largest, mean) in forms.items():
        differences = _golden_differences(device, settings)
        average = sum(differences) / len(differences)
        figures |= {"cases": len(differences), name: {"max": max(differences), "mean": average}}
        check(max(differences) <= largest and average <= mean, f"{name}: {figures[name]}")
    return figures


def _golden_differences(device: Device, settings: dict[str, Any]) -> list[float]:
    from tests.support.engine import GOLDEN, TINY, candidate_set, golden_cases

    # Without files of videos, whose readers are packages that a bare machine lacks.
    cases = [case for case in golden_cases() if case["kind"] not in {"error", "vfile", "vmixed"}]
    reranker = Reranker(
        str(TINY),
        device=device.name,
        special_tokens="official",
        empty="official",
        image_depth="official",
        media_root=str(GOLDEN),
        **settings,
    )
    scores = scores_of(reranker, list(map(candidate_set, cases)))
    return [abs(s - c["official"]["score"]) for (s,), c in zip(scores, cases, strict=True)]


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
    model = PlainModel(PeerSettings(str(device.checkpoint), device.name, dtype, threads=None))
    states = [state for one in part.sets for state in model.last_states(one)]
    logits = (torch.stack(states).float() @ model.head).cpu().numpy()
    del model
    device.empty()
    return logits
