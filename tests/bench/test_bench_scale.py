"""The scale benchmark's own parts, and a small run of it."""

import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import scale, scaling


def test_a_small_run_is_exact_and_says_what_it_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale.main(["--pairs", "2000", "--pair-us", "10", "--workdir", str(tmp_path)])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["is_exact"] and (figures["pairs"], figures["units"]) == (2_000, 8)
    held = [each["driver"] for each in figures["memory_mb"].values()]
    assert held == sorted(held) and held[-1] > 50
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["num_pairs"], manifest["num_failed"]) == (2_000, 0)


def test_growth_is_told_of_whoever_grew() -> None:
    sizes = [(0.1, 100, 50, 5), (0.25, 110, 60, 6), (0.6, 111, 90, 70), (1.0, 109, 80, 900)]
    samples = [
        scale.Sample(share, driver << 20, worker << 20, store << 20)
        for share, driver, worker, store in sizes
    ]
    assert scale._growth(samples) == pytest.approx(0.5)
    held = scale._by_share(samples)
    assert held["25%"] == {"driver": 110, "worker": 60, "store": 6}
    assert held["100%"] == {"driver": 111, "worker": 90, "store": 900}


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells shared pages apart")
def test_shared_pages_are_not_a_processs_own() -> None:
    before = scale.own_bytes(os.getpid())
    with mmap.mmap(-1, 64 << 20) as shared:  # anonymous and shared, as the object store is
        for place in range(0, len(shared), 4_096):
            shared[place] = 1
        assert scale.own_bytes(os.getpid()) - before < 16 << 20
    # Not of Python's: it may have room that it got long ago.
    with mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        for place in range(0, len(own), 4_096):
            own[place] = 1
        assert scale.own_bytes(os.getpid()) - before > 48 << 20


@pytest.mark.parametrize(
    ("growth", "is_exact", "code"), [(0.05, True, 0), (0.2, True, 1), (0, False, 1)]
)
def test_the_exit_code_says_if_it_held(
    growth: float, is_exact: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: dict[str, Any] = {
        "pairs": 1, "pair_us": 1.0, "units": 1, "seconds": 1.0, "pairs_per_s": 1.0,
        "memory_mb": {}, "growth": growth, "is_exact": is_exact,
    }  # fmt: skip
    monkeypatch.setattr(scale, "_measure", lambda *_: figures)
    assert scale.main([]) == code


def test_steady_is_while_all_score_and_counts_calls_by_their_share() -> None:
    calls = [
        scaling.Call(0.0, 2.0, 1, 20),
        scaling.Call(2.0, 4.0, 1, 20),
        scaling.Call(1.0, 3.0, 2, 20),
        scaling.Call(4.0, 5.0, 2, 10),
    ]
    rate, seconds = scaling.steady(calls, 2)
    assert (rate, seconds) == (pytest.approx((10 + 20 + 20) / 3), pytest.approx(3.0))
    with pytest.raises(SystemExit, match="2 of 3 actors"):
        scaling.steady(calls, 3)


def test_a_small_weak_scaling_run(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--nodes", "2", "--seconds", "4", "--chunk-s", "0.5"])
    (run,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert run["nodes"] == 2 and run["pairs"] == 8_150 and run["pairs_per_s"] > 0
