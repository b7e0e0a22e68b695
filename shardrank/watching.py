"""`status --watch`: a job's output, looked at until the job has ended; drawn anew on a terminal,
elsewhere a line for each look at which something is new.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar

from shardrank.jobs.errors import VerificationError
from shardrank.jobs.outputs.done import Known
from shardrank.jobs.outputs.lease import EXPIRES_S
from shardrank.jobs.outputs.status import State, Status, read_status
from shardrank.jobs.run.progress import duration, window_environment
from shardrank.summary import facts, noun_of, print_status, status_values

_LEAST_S = 2.0
_LOOKS_SHARE = 0.1
"""Of the time, where nobody says how often: a storage that takes long is asked seldom."""
_SAID_EVERY_S = 60.0
_BELIEVED_DEAD_S = 2 * EXPIRES_S
_LOOKS_AT_WHAT_GOES = 3


@dataclass(slots=True)
class _Watch:
    """What is known of one output: files that were read before are not read again, and since when
    its holder has said nothing.
    """

    output: str
    known: Known = field(default_factory=Known)
    first: tuple[float, int, int] | None = None
    heard: tuple[object, float] = (None, 0.0)
    looked_s: float = 0.0

    def look(self) -> Status:
        """The units, by one listing of the score files; a file may go while it is looked at, as
        those by document do at a job's end.
        """
        started = time.monotonic()
        for _ in range(_LOOKS_AT_WHAT_GOES - 1):
            try:
                status = read_status(self.output, self.known)
                break
            except VerificationError:
                time.sleep(1)
        else:
            status = read_status(self.output, self.known)
        now = time.monotonic()
        self.looked_s = now - started
        if self.first is None:
            self.first = now, *_done(status)
        holder = status.holder and (status.holder.get("run"), status.holder.get("renewed"))
        if holder != self.heard[0] or not self.heard[1]:
            self.heard = holder, now
        return status

    def state(self, status: Status) -> State:
        """A job that is running by its file, and has not renewed that for long, is stopped: by our
        own clock, which is compared with no other.
        """
        is_silent = time.monotonic() - self.heard[1] > _BELIEVED_DEAD_S
        return "stopped" if status.state == "running" and is_silent else status.state

    def pace(self, status: Status) -> str:
        """How fast rows came since the first look."""
        assert self.first is not None
        began, units_then, pairs_then = self.first
        num_units, num_pairs = _done(status)
        seconds, new = time.monotonic() - began, num_units - units_then
        if new <= 0 or seconds <= 0:
            return ""
        pace = f"{(num_pairs - pairs_then) / seconds:,.1f} {noun_of(status.manifest)}/s"
        if not status.units:  # how many there are by document, the output does not say
            return pace
        return f"{pace} · ETA {duration((status.num_units - num_units) * seconds / new)}"


def _done(status: Status) -> tuple[int, int]:
    """Units, and their pairs."""
    files = status.units or status.by_document
    return len(files), sum(unit.num_pairs for unit in files)


def watch(output: str, every_s: float | None, as_json: bool) -> State:
    """Look until the job has ended; returns how it did."""
    watched = _Watch(output)
    console = Console(markup=False, _environ=window_environment())
    if as_json:
        return _until_ended(watched, every_s, _Lines(_as_json).show)[1]
    if not console.is_terminal or console.is_dumb_terminal:
        last, state = _until_ended(watched, every_s, _Lines(_line).show)
    else:
        with Live(console=console, transient=True) as live:
            last, state = _until_ended(watched, every_s, lambda *seen: live.update(_drawn(*seen)))
    print_status(last, console)
    return state


def _until_ended(
    watched: _Watch, every_s: float | None, show: Callable[[_Watch, Status], None]
) -> tuple[Status, State]:
    while True:
        status = watched.look()
        show(watched, status)
        state = watched.state(status)
        if state != "running":
            return status, state
        time.sleep(every_s or max(_LEAST_S, watched.looked_s / _LOOKS_SHARE))


def _drawn(watched: _Watch, status: Status) -> Group:
    table = facts(status)
    if pace := watched.pace(status):
        table.add_row("pace", pace)
    return Group(table, ProgressBar(total=max(1, status.num_units), completed=len(status.units)))


class _Lines:
    """Lines on stdout: one where something is new, and one now and then."""

    def __init__(self, line: Callable[[_Watch, Status], str]) -> None:
        self._line = line
        self._said: tuple[object, float] = (None, 0.0)

    def show(self, watched: _Watch, status: Status) -> None:
        seen, now = (status.state, status.is_silent, _done(status)), time.monotonic()
        if seen != self._said[0] or now - self._said[1] >= _SAID_EVERY_S:
            self._said = seen, now
            print(self._line(watched, status), flush=True)


def _line(watched: _Watch, status: Status) -> str:
    units, pairs = f"{len(status.units):,} of {status.num_units:,} units", status.num_pairs
    parts = [units, f"{pairs:,} rows", f"{sum(status.errors.values()):,} errors"]
    if status.by_document:
        parts.insert(1, f"{len(status.by_document):,} parts by document")
    if pace := watched.pace(status):
        parts.append(pace)
    return f"{time.strftime('%H:%M:%S')} {status.state} · {' · '.join(parts)}"


def _as_json(watched: _Watch, status: Status) -> str:
    return json.dumps(status_values(status))
