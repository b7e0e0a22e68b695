"""How many pairs of a job may have an error before it stops: going wrong wholesale is no result."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shardrank.jobs.errors import TooManyErrors, UsageError, Way


def parse_percent(text: str) -> float | None:
    """`2.5%` as 0.025; None for what is no share of a whole."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    share = float(match[1]) / 100 if match else math.inf
    return share if share <= 1 else None


@dataclass(frozen=True, slots=True)
class MaxErrors:
    """A share of the job's pairs, or a number of them; the larger one counts."""

    share: float = 0.01
    num: int = 100

    @classmethod
    def parse(cls, text: str) -> "MaxErrors":
        """`2.5%` or `1000`. Raises UsageError."""
        if text.isdecimal():
            return cls(0.0, int(text))
        share = parse_percent(text)
        if share is None:
            raise UsageError(f"--max-errors must be a number or a share such as 1%, got {text!r}")
        return cls(share, 0)

    def limit(self, num_pairs: int) -> int:
        return max(int(self.share * num_pairs), self.num)


@dataclass(slots=True)
class Budget:
    """Counts the errors of what is written, by code, over all runs of a job."""

    max_errors: MaxErrors
    num_pairs: int
    errors: Counter[str] = field(default_factory=Counter)
    example: str = ""

    @property
    def limit(self) -> int:
        return self.max_errors.limit(self.num_pairs)

    def check(self) -> None:
        """Raises TooManyErrors."""
        if self.errors.total() > self.limit:
            sentence = (
                f"{self.errors.total():,} of {self.num_pairs:,} pairs have an error "
                f"({_by_code(self.errors)}), more than --max-errors allows ({self.limit:,})"
            )
            error = TooManyErrors("; one says: ".join(filter(None, (sentence, self.example))))
            error.ways = ways_beyond(self.errors, self.example)
            raise error

    def add(self, codes: Counter[str], sentences: Iterable[str] = ()) -> None:
        """sentences: of rows with an error; of the first that has one is told what it says."""
        self.errors.update(codes)
        self.example = self.example or next(iter(sentences), "")
        self.check()


_CURES = {
    "media_forbidden": "--web-media for what is on the web, with --allow-network CIDR for servers "
    "whose address is not public; another --media-root needs another --output",
    "media_unreachable": "where the storage or the server answers again",
    "media_not_found": "where the files are there by now",
    "timed_out": "a larger --pair-timeout-s",
    "video_reader_missing": "with PyAV installed",
}


_NEEDS_WEB = "over http(s) are not allowed"
"""What actors/fetch/reader.py says of a URL without --web-media."""


def ways_beyond(errors: Mapping[str, int], example: str = "") -> list[Way]:
    """How a job goes on that had too many errors."""
    ways = [Way("to leave those rows without a score", ("--max-errors=100%",))]
    codes = [code for code in errors if code in _CURES]
    again = tuple(f"--retry-errors={code}" for code in codes)
    if _NEEDS_WEB in example:
        ways.append(Way("to fetch them from the web", (*again, "--web-media")))
    elif codes:
        cures = "; ".join(_CURES[code] for code in codes)
        ways.append(Way(f"to score them again, once their cause is gone ({cures})", again))
    return ways


def _by_code(errors: Counter[str]) -> str:
    return ", ".join(f"{num:,} x {code}" for code, num in errors.most_common(5))
