"""Pages a second of the CPU half alone: decode, resize, tokenise. One process, one thread."""

import statistics
import time
from pathlib import Path
from typing import Any

from bench.media import write_page
from bench.peers.protocol import Peer, PeerSettings
from bench.processes import run_once
from bench.settings import BenchSettings
from shardrank.actors import CandidateSet, RerankerConfig
from shardrank.actors.prepared import PreparedPair
from shardrank.actors.preprocessor import Preprocessor

PAGE_TOKENS = 1_300
NUM_PAGES = 40
_CORES = 8


def measure_preprocessing(settings: BenchSettings, checkpoint: Path) -> dict[str, Any]:
    """By image format. Raises PeerFailed."""
    figures: dict[str, Any] = {}
    folder = settings.workdir / "media" / f"pages-{PAGE_TOKENS}"
    for suffix in ("jpg", "png"):
        pages = [
            write_page(
                folder / f"{number:04}.{suffix}", f"{settings.seed}:{suffix}:{number}", PAGE_TOKENS
            )
            for number in range(max(2, round(NUM_PAGES * settings.scale)))
        ]
        figures[suffix] = run_once(
            "bench.preprocessing:Pages",
            "measured",
            {"pages": pages, "rounds": settings.rounds},
            PeerSettings(str(checkpoint)),
            settings.log("preprocessing"),
        )
    return figures


def preprocessing_lines(figures: dict[str, Any]) -> str:
    lines = [
        f"preprocess: {suffix}: {one['pages_per_s']:,.1f} pages/s of {one['tokens']:,} tokens on "
        f"one core (times {_CORES} cores, an extrapolation: {one['pages_per_s'] * _CORES:,.0f})"
        for suffix, one in figures.items()
    ]
    return "\n".join(lines) + "\n"


class Pages(Peer):
    def __init__(self, settings: PeerSettings) -> None:
        self._config = RerankerConfig(model=settings.model)

    def measured(self, argument: dict[str, Any]) -> dict[str, Any]:
        pages, rounds = argument["pages"], argument["rounds"]
        self._prepare(pages[:2])
        runs = [self._prepare(pages) for _ in range(rounds)]
        seconds = statistics.median_high(seconds for seconds, _ in runs)
        return {"pages_per_s": len(pages) / seconds, "tokens": runs[0][1]}

    def _prepare(self, pages: list[str]) -> tuple[float, int]:
        """Seconds, and visual tokens of a page, with nothing in any cache."""
        preprocessor = Preprocessor(self._config)
        parsed = [CandidateSet.parse("which page?", [{"image": page}]) for page in pages]
        before = time.perf_counter()
        prepared = [preprocessor.prepare(one).pairs[0] for one in parsed]
        seconds = time.perf_counter() - before
        first = prepared[0]
        assert isinstance(first, PreparedPair), first
        return seconds, first.num_visual_tokens
