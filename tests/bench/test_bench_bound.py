"""What a million pairs would take: the calculator, and docs/cluster.md's table of its figures."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.bound.__main__ import RENTED, main
from bench.bound.roofline import GPUS

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
SMALL = ("--presets", "2b", "--workloads", "text", "--scale", "0.1")


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a model, not measured;")
    return json.loads(lines[-1])


def test_hours_are_the_bound_over_the_assumed_share_and_cost_what_you_say(capsys):
    whole, half = (
        figures(capsys, *SMALL, "--efficiency", share, "--gpu-hour-price", "L4=1000000")
        for share in ("1", "0.001")
    )
    for full, part in zip(whole["rows"], half["rows"], strict=True):
        assert full["bound_hours"] == part["bound_hours"]
        assert part["hours"] == pytest.approx(1_000 * full["bound_hours"], abs=0.01)
        assert ("cost" in part) == (part["gpu"] == "L4")
        assert part.get("cost", 0) == pytest.approx(part["hours"] * 1e6 * ("cost" in part))


def test_slower_gpus_take_longer(capsys):
    rows = figures(capsys, *SMALL, "--efficiency", "0.0001")["rows"]
    hours = {row["gpu"]: row["hours"] for row in rows}
    assert set(GPUS) < set(RENTED) and hours["H200"] <= hours["H100"] < hours["L40S"] < hours["L4"]


@pytest.mark.parametrize("wrong", ["--gpu-hour-price=A100=1", "--efficiency=1.5", "--presets=3b"])
def test_a_wrong_option_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        main([wrong])
    assert "error" in capsys.readouterr().err


def table() -> dict[tuple[str, str], list[str]]:
    """Cells by workload and model."""
    rows: dict[tuple[str, str], list[str]] = {}
    workload = ""
    for line in PAGE.read_text("utf-8").splitlines():
        found = re.match(r"\| (?:`(\w+)`: .*)?\| (2B|8B) \| (.*) \|$", line)
        if found:
            workload = found[1] or workload
            rows[workload, found[2].lower()] = found[3].split(" | ")
    return rows


def test_the_page_has_the_calculators_figures_of_text(capsys):
    command = re.search(r"python -m bench\.bound (.*)", PAGE.read_text("utf-8"))[1].split()
    said = {row: cells for row, cells in table().items() if row[0] == "text"}
    for model in ("2b", "8b"):
        chosen = ("--workloads", "text", "--presets", model)
        rows = {row["gpu"]: row for row in figures(capsys, *command, *chosen)["rows"]}
        computed = [f"{rows['H100']['tflop_per_pair']:.3f}"]
        computed += [
            f"{rows[g]['hours']:.2f} h, ${rows[g]['cost']:.2f}" for g in ("H100", "L40S", "L4")
        ]
        assert said["text", model] == computed


def test_the_pages_other_figures_agree_with_each_other():
    """Those of pages take half a minute to compute anew: hours are proportional to the FLOPs."""
    rows = table()
    assert rows.keys() == {(name, model) for name in ("text", "pages") for model in ("2b", "8b")}
    for (_, model), (tflop, *cells) in rows.items():
        of_text = rows["text", model]
        ratio = float(tflop) / float(of_text[0])
        for cell, text, price in zip(cells, of_text[1:], (4, 2, 0.8), strict=True):
            hours, cost = re.fullmatch(r"([\d.]+) h, \$([\d.]+)", cell).groups()
            assert float(cost) == pytest.approx(float(hours) * price, abs=0.02)
            assert float(hours) == pytest.approx(ratio * float(text.split(" ")[0]), rel=0.05)
