"""Pages a second of the CPU half alone: decode, resize, tokenise. One process, one thread."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.media import write_page
from bench.processes import run_once
from bench.settings import BenchSettings

PAGE_TOKENS = 1_300
NUM_PAGES = 40
_CORES = 8


def measure_preprocessing(settings: BenchSettings, checkpoint: Path) -> dict[str, Any]:
    """By image format. Raises PeerFailed."""
    figures: dict[str, Any] = {}
    for suffix in ("jpg", "png"):
        pages = [
            write_page(
                settings.workdir / "media" / f"pages-{PAGE_TOKENS}" / f"{number:04}.{suffix}",
                f"{settings.seed}:{suffix}:{number}",
                PAGE_TOKENS,
            )
            for number in range(max(2, round(NUM_PAGES * settings.scale)))
        ]
        figures[suffix] = run_once(
            "bench.preprocessing",
            {"model": str(checkpoint), "pages": pages, "rounds": settings.rounds},
            1,
            settings.workdir / "logs" / "preprocessing.log",
        )
    return figures


def preprocessing_lines(figures: dict[str, Any]) -> str:
    lines = [
        f"preprocess: {suffix}: {one['pages_per_s']:,.1f} pages/s of {one['tokens']:,} tokens on "
        f"one core (times {_CORES} cores, an extrapolation: {one['pages_per_s'] * _CORES:,.0f})"
        for suffix, one in figures.items()
    ]
    return "\n".join(lines) + "\n"


def _prepare_all(model: str, pages: list[str]) -> tuple[float, int]:
    """Seconds, and visual tokens of a page, with nothing in any cache."""
    from shardrank.actors import CandidateSet, RerankerConfig
    from shardrank.actors.prepared import PreparedPair
    from shardrank.actors.preprocessor import Preprocessor

    preprocessor = Preprocessor(RerankerConfig(model=model))
    parsed = [CandidateSet.parse("which page?", [{"image": page}]) for page in pages]
    before = time.perf_counter()
    prepared = [preprocessor.prepare(one).pairs[0] for one in parsed]
    seconds = time.perf_counter() - before
    first = prepared[0]
    assert isinstance(first, PreparedPair), first
    return seconds, first.num_visual_tokens


def main() -> None:
    import torch

    torch.set_num_threads(1)
    settings = json.loads(sys.argv[1])
    _prepare_all(settings["model"], settings["pages"][:2])
    runs = sorted(
        _prepare_all(settings["model"], settings["pages"]) for _ in range(settings["rounds"])
    )
    seconds, tokens = runs[len(runs) // 2]
    print(json.dumps({"pages_per_s": len(settings["pages"]) / seconds, "tokens": tokens}))


if __name__ == "__main__":
    main()
