"""What ends the job, apart from rows: those become error rows (actors/errors.py).

    JobError                exit code 1   the job failed; what is finished stays
    ├── UnreadableInput                   an input file that is not what its name says
    ├── UnitsFailed                       some units could not be read; the others are finished
    ├── TooManyErrors                     more rows with an error than --max-errors
    └── VerificationError                 the output does not hold every input pair exactly once
    UsageError              exit code 2   the command cannot be run as given

Each message is one sentence that names the argument, the file or the column, and what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """What is added to a job's command, and what for."""

    purpose: str
    arguments: tuple[str, ...]


class JobError(Exception):
    """The job failed; running the same command again goes on from what is finished. Where that
    would fail again, `ways` has what to add.
    """

    ways: Sequence[Way] = ()

    def __reduce__(self) -> tuple[type["JobError"], tuple[str]]:
        return type(self), (str(self),)


class UnreadableInput(JobError):
    pass


class UnitsFailed(JobError):
    pass


class TooManyErrors(JobError):
    pass


class VerificationError(JobError):
    pass


class UsageError(ValueError):
    """The command is wrong as given: nothing was started and nothing was written."""
