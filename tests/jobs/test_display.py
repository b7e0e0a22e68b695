"""What is seen of a job, in a real pseudo-terminal and in a log."""

import logging
import re
import sys

import pyarrow as pa
import pytest

from shardrank.jobs.run.progress import LOG_EVERY_S, STEADY_AFTER_S, Display, Meter, Step, Underway
from tests.support.terminal import Terminal

SHOWS = """
import logging, sys
from shardrank.cluster import _stderr_held_back
from shardrank.jobs.run.progress import display
from shardrank.jobs.run.progress import Meter, Step

logging.basicConfig(level=logging.INFO, format="%(message)s")
log = logging.getLogger("job").info
with display() as shown:
    log("a first line")
    shown.show(Step("starting Ray"))
    with _stderr_held_back():
        sys.stdin.readline()
    meter = Meter(total_pairs=6_480, total_groups=2_007, groups="documents")
    shown.show(meter)
    for _ in range(30):
        meter.num_pairs += 100
        meter.num_tokens += 12_345
        if meter.num_pairs % 1_000 == 0:
            log(f"a line of the log beside it, with {meter.num_pairs} pairs")
            sys.stdin.readline()
    shown.finish(meter)
log("the last line")
"""


@pytest.mark.parametrize("columns", [80, 100])
def test_a_terminal_shows_the_whole_line_with_its_bar_below_the_log(columns: int) -> None:
    """COLUMNS says more than the window has, as in a shell that was made larger once."""
    command = [sys.executable, "-c", SHOWS]
    terminal = Terminal(command, columns, {"COLUMNS": "200", "LINES": "90"})
    assert terminal.watch(lambda text: "starting Ray · 0:01" in text)  # Ray has the stderr
    for pairs in ("1,000", "2,000", "3,000"):
        terminal.type("\n")
        whole = rf"{pairs}/6,480 pairs · 0/2,007 documents · .* pairs/s · .* tokens/s · ETA \d.* · "
        assert terminal.watch(lambda text, w=whole: re.search(w + "0 errors ━", text) is not None)
    seen = terminal.lines
    assert [line for line in seen if "━" in line] == seen[-1:] and len(seen[-1]) == columns
    assert len(seen) <= 1 + 3 + 2 + 1
    terminal.type("\n")
    assert not terminal.watch()
    assert [line[:12] for line in terminal.lines if "3,000/6,480" in line] == ["3,000/6,480 "]
    assert terminal.lines[0] == "a first line" and terminal.lines[-1] == "the last line"
    assert not any("━" in line or "starting" in line for line in terminal.lines)


def test_a_log_has_a_line_at_least_every_ten_seconds_and_the_last_one_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shown = Display(is_live=False)
    step, meter = Step("starting Ray"), Meter(total_pairs=20, total_groups=2, num_actors=3)
    shown.show(step)
    for _ in range(25):
        shown.tick(1.0)
    shown.show(meter)
    for num in range(21):
        meter.num_pairs = num
        shown.tick(LOG_EVERY_S / 2)
    shown.finish(meter)
    said = [record.message for record in caplog.records]
    assert said[:2] == ["starting Ray · 0:00"] * 2
    assert "0 of 3 scoring actors ready" in said[2]
    assert [line.partition(" pairs")[0] for line in said[2:]] == [
        "0/20", "2/20", "4/20", "6/20", "8/20", "10/20", "12/20", "14/20", "16/20", "18/20", "20/20"
    ]  # fmt: skip


def test_a_terminal_that_cannot_draw_has_the_log_alone() -> None:
    terminal = Terminal([sys.executable, "-c", SHOWS], 80, {"TERM": "dumb"})
    terminal.type("\n")
    for pairs in ("1000", "2000", "3000"):
        assert terminal.watch(lambda text, p=pairs: f"with {p} pairs" in text)
        assert "━" not in terminal.text
        terminal.type("\n")
    assert not terminal.watch()
    assert terminal.lines[0] == "a first line" and terminal.lines[-1] == "the last line"


def test_counts_are_brought_up_to_date_while_something_is_at_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shown, step = Display(is_live=False), Step("regrouping", total=9)

    def poll() -> None:
        step.num += 1

    with shown.polled(step, poll):
        shown.tick(LOG_EVERY_S)
    shown.tick(LOG_EVERY_S)
    assert [record.message for record in caplog.records] == ["regrouping: 1/9 pairs"] * 2


def scored(unit: int, chunk: int, num_rows: int, num_failed: int = 0) -> pa.Table:
    names = {"unit": unit, "chunk": chunk, "num_tokens": 3}
    columns = {name: pa.array([value] * num_rows) for name, value in names.items()}
    codes = ["image_decode"] * num_failed + [None] * (num_rows - num_failed)
    return pa.table(columns | {"error_code": pa.array(codes, pa.string())})


def test_rates_are_of_what_came_after_the_first_scores_and_errors_count() -> None:
    meter = Meter(total_pairs=150, total_groups=10)
    meter.started -= 1_000
    meter.add(scored(0, 0, 100, num_failed=2))
    assert meter.first is not None
    since, *counts = meter.first
    meter.first = since - 2 * STEADY_AFTER_S, *counts
    meter.add(scored(0, 1, 80, num_failed=1))
    assert meter.rates() == pytest.approx((80 / 40, 240 / 40), rel=0.01)
    assert meter.num_errors == 3
    assert meter.line().startswith("180/180 pairs") and "ETA 0:00" in meter.line()


def test_pairs_count_as_they_are_scored_and_once() -> None:
    meter = Meter(total_pairs=1_000, total_groups=10)
    meter.underway = Underway(1, 512, {(0, 0): 100, (0, 1): 50})
    assert meter.num == 150 and "150/1,000 pairs" in meter.line()
    meter.add(scored(0, 0, 512))  # what is known of it is from before it came
    assert meter.num == 562
    meter.underway = Underway(1, 512, {})  # its process died, and another one begins it again
    assert meter.num == 562
    meter.add(scored(0, 1, 488))
    assert meter.num == 1_000 and meter.num_pairs == 1_000
