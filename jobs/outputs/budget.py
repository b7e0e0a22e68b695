"""How many pairs of a job may have an error before it stops: going wrong wholesale is no result."""

import re
from collections import Counter
from dataclasses import dataclass, field

from shardrank.jobs.errors import TooManyErrors, UsageError

_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


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
        match = _SHARE.fullmatch(text)
        if match is None or float(match[1]) > 100:
            raise UsageError(f"--max-errors must be a number or a share such as 1%, got {text!r}")
        return cls(float(match[1]) / 100, 0)

    def limit(self, num_pairs: int) -> int:
        return max(int(self.share * num_pairs), self.num)


@dataclass(slots=True)
class Budget:
    """Counts the errors of what is written, by code, over all runs of a job."""

    max_errors: MaxErrors
    num_pairs: int
    errors: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Raises TooManyErrors."""
        limit = self.max_errors.limit(self.num_pairs)
        if self.errors.total() > limit:
            raise TooManyErrors(
                f"{self.errors.total():,} of {self.num_pairs:,} pairs have an error "
                f"({_by_code(self.errors)}), more than --max-errors allows ({limit:,})"
            )

    def add(self, codes: Counter[str]) -> None:
        self.errors.update(codes)
        self.check()


def _by_code(errors: Counter[str]) -> str:
    return ", ".join(f"{num:,} x {code}" for code, num in errors.most_common(5))
