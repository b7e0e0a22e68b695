"""A job over there, shown here as one on this machine is: its log above, what it is at below."""

import re
import sys
import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardrank.jobs.errors import JobError
from shardrank.jobs.run.progress import Display, Step, duration
from shardrank.jobs.secrets import printable
from shardrank.jobs.submit.submission import Submission, go_on, resumed

if TYPE_CHECKING:  # Ray takes seconds to import
    from ray.job_submission import JobDetails

    from shardrank.jobs.submit.dashboard import Dashboard

LOST_AFTER_S = 300.0
"""That a cluster does not answer, before its jobs are no longer followed."""
ASK_EVERY_S = 2.0


_COUNTED = re.compile(
    r"\d\d:\d\d:\d\d ((?:[^·/]+: )?([\d,]+)/([\d,]+) [a-z ]+(?: · .*)?|[^·]+ · [\d:]+)"
)
_RAYS = re.compile(r"Running entrypoint for job |\S+ \S+\tINFO job_manager\.py:\d+ -- ")


@dataclass(frozen=True, slots=True)
class Said:
    """What a job over there was at, as its log has it."""

    text: str
    num: int = 0
    total: int | None = None

    @classmethod
    def parse(cls, line: str) -> "Said | None":
        found = _COUNTED.fullmatch(line)
        if found is None:
            return None
        if found[2] is None:
            return cls(found[1])
        return cls(found[1], *(int(each.replace(",", "")) for each in found.groups()[1:3]))

    def line(self) -> str:
        return self.text


class Follower:
    """Shows what a job says, through lost connections, until it has ended."""

    def __init__(self, dashboard: "Dashboard", job: str, shown: Display) -> None:
        self.dashboard, self.job, self._shown = dashboard, job, shown
        self.submission: Submission | None = None
        self.last: deque[str] = deque(maxlen=20)
        self._num_lines = 0
        self._stdout = None if sys.stdout.isatty() else sys.stdout  # the display takes a terminal's
        self._whole: str | None = None

    def follow(self) -> "JobDetails":
        from shardrank.jobs.submit.dashboard import Unreachable

        while True:
            found = self._asked()
            if found.status.value == "PENDING":
                self._shown.show(Step(f"waiting for {self.job} to start"))
            with suppress(Unreachable):
                self._read()
                found = self._asked()
                if found.status.is_terminal():
                    return found
            time.sleep(ASK_EVERY_S / 2)

    def _read(self) -> None:
        """The log's lines that were not seen yet."""
        num = 0
        with closing(self.dashboard.lines(self.job)) as lines:
            for line in lines:
                num += line is not None
                if line is not None and num > self._num_lines:
                    self._num_lines = num
                    self._say(line)

    def _say(self, line: str) -> None:
        said = Said.parse(line)
        if said is not None:
            self._shown.show(said)
            if said.total is None or said.num < said.total or said.text == self._whole:
                return
            self._whole = said.text
        if not _RAYS.match(line):
            self.last.append(line)
            print(printable(line), file=self._stdout, flush=True)

    def _asked(self) -> "JobDetails":
        """How the job is. A cluster that does not answer is asked for a while."""
        from shardrank.jobs.submit.dashboard import NoSuchJob, Unreachable

        lost_at = time.monotonic()
        while True:
            try:
                found = self.dashboard.job(self.job)
                self.submission = Submission.of(found)
                return found
            except NoSuchJob as error:
                if self.submission is None:
                    raise
                raise JobError(
                    f"the cluster at {self.dashboard.address} was started anew: its head died, and "
                    f"{self.job} with it; what is finished is kept, go on with:"
                    + self._anew(self.submission)
                ) from error
            except Unreachable as error:
                if time.monotonic() - lost_at > LOST_AFTER_S:
                    ways = go_on(self.dashboard, ["follow", self.job])
                    raise JobError(
                        f"{error}; it was asked for {duration(LOST_AFTER_S)}. If the cluster is "
                        f"up, {self.job} runs on; follow it with:{ways}"
                    ) from error
                self._shown.show(Step(f"{self.dashboard.address} does not answer, asking again"))
                time.sleep(ASK_EVERY_S)

    def _anew(self, submission: Submission) -> str:
        return go_on(self.dashboard, [*submission.arguments, *submission.options])


def _reason(message: str | None) -> str:
    """The sentence that says most: a traceback's last line, or else the first one."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    has_traceback = any(line.startswith("Traceback") for line in lines)
    return (lines or ["Ray does not say why"])[-1 if has_traceback else 0]


_NO_MODULE = re.compile(r"No module named '?(\w+)")


def exit_code(ended: "JobDetails", follower: Follower) -> int:
    """The job's own. Raises JobError where it could not say itself what became of it."""
    job, code = follower.job, ended.driver_exit_code
    resume = f"what is finished is kept, go on with:{go_on(follower.dashboard, resumed(ended))}"
    if ended.status.value == "SUCCEEDED":
        return 0
    if ended.status.value == "STOPPED":
        if not any("submit resume" in line for line in follower.last):  # as it says at its end
            print(f"{job} was stopped; {resume}", file=sys.stderr)
        return 130
    if code is None:
        raise JobError(f"{job} failed on the head: {_reason(ended.message)}; {resume}")
    if code in (126, 127):
        raise JobError(
            "the cluster's head has no ShardRank where a job finds it: install it on every node, "
            "in the environment that Ray was started from (cluster.yaml does), or send a checkout "
            "along: --working-dir DIR"
        )
    if code < 0 or code > 128 and code != 130:
        number = -code if code < 0 else code - 128
        raise JobError(f"{job} was killed on the head, by signal {number}; {resume}")
    missing = next(filter(None, map(_NO_MODULE.search, reversed(follower.last))), None)
    if missing is not None:
        raise JobError(
            f"a node of the cluster lacks the package {missing[1]}: every node needs what "
            f"constraints.txt pins, in the environment that Ray was started from; {resume}"
        )
    return code
