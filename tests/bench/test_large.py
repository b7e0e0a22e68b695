"""The real shape of 2B with random weights, once on this CPU: ours against plain transformers.

One model in memory at a time. `make test-large`.
"""

import gc
import time
from pathlib import Path

import pytest
import torch

from bench.checkpoints.build import write_outline
from bench.media import write_page
from bench.peers.ours import Ours
from bench.peers.plain import PlainModel
from bench.peers.protocol import PeerSettings
from bench.peers.usage import peak_rss_bytes

pytestmark = [pytest.mark.large, pytest.mark.timeout(3_600)]


def sets(directory: Path) -> list[dict]:
    """Texts of one query, and a page."""
    page = write_page(directory / "page.png", "page", num_tokens=48)
    texts = ["Mars is the red planet.", "Bananas are yellow and bent. " * 6, "red " * 40]
    query = {"text": "Which planet is called the red one, and why?"}
    documents = [*({"text": text} for text in texts), {"image": page}]
    return [{"query": query, "documents": documents}]


def our_states(settings: PeerSettings, scored: list[dict]) -> torch.Tensor:
    """(pairs, hidden) as the decoder gives them on its way to the scores."""
    ours = Ours(settings)
    decoder = ours.reranker.scorer._model.decoder
    last_hidden, found = decoder.last_hidden, []

    def recorded(*arguments, **options):
        hidden, kept = last_hidden(*arguments, **options)
        found.append(hidden)
        return hidden, kept

    decoder.last_hidden = recorded
    scores = ours.score(scored)
    assert all(0 <= score <= 1 for score in scores[0])
    return torch.cat(found).float()


def plain_states(settings: PeerSettings, scored: list[dict]) -> torch.Tensor:
    model = PlainModel(settings)
    states = [state for one in scored for state in model.last_states(one)]
    return torch.stack(states).float()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest of the pairs', relative to the state's norm."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def test_the_real_shape_of_2b_equals_plain_transformers(tmp_path):
    write_outline("2b", tmp_path)
    scored = sets(tmp_path)
    states = {}
    for dtype in ("float32", "bfloat16"):
        for run in (our_states, plain_states):
            started = time.perf_counter()
            settings = PeerSettings(str(tmp_path), dtype=dtype, threads=2)
            states[run, dtype] = run(settings, scored)
            gc.collect()
            seconds = time.perf_counter() - started
            print(f"{run.__name__} {dtype}: {seconds:.0f} s, peak {peak_rss_bytes() / 1e9:.1f} GB")
    exact = states[plain_states, "float32"]
    assert exact.shape == (4, 2_048)
    assert (exact[0] - exact[1]).norm() / exact[0].norm() > 0.1  # states that tell pairs apart
    ours, plain = (distance(states[run, "bfloat16"], exact) for run in (our_states, plain_states))
    in_float32 = distance(states[our_states, "float32"], exact)
    print(f"float32 {in_float32:.1e}; bfloat16 {ours:.3f}, transformers' own {plain:.3f}")
    assert in_float32 < 1e-4
    assert ours < 1.5 * plain
