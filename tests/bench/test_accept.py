"""Acceptance of a device, tried on a CPU: a stand-in kernel, a tiny model, all else real."""

import json
import subprocess
import sys

import pytest
import torch

from bench.accept import main
from bench.acceptance.kernel import MAX_OUTPUT_ERROR, by_formula, errors
from bench.processes import ROOT

PARTS = ("environment", "kernel", "start", "real-shapes", "speed", "out-of-memory")


def accept(file, *names: str) -> int:
    command = ["--device", "cpu", "--preset", "tiny", "--json", str(file)]
    return main([*command, "--steps", ",".join(names)])


def broken(device):
    raise ValueError("the reason")


def test_a_step_that_fails_is_the_exit_code_and_is_the_only_one_done_again(
    tmp_path, capsys, monkeypatch
):
    file = tmp_path / "accepted.json"
    with monkeypatch.context() as patched:
        patched.setattr("bench.acceptance.scores.kernel", broken)
        assert accept(file, *PARTS) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["failed"] == ["kernel"] and not report["is_accepted"]
    assert report["steps"]["kernel"]["failed"] == "ValueError: the reason"
    assert report["steps"]["real-shapes"]["float32_difference"] < 1e-4
    assert accept(file, *PARTS) == 0
    output = capsys.readouterr().out
    assert output.count("done before") == len(PARTS) - 1
    assert json.loads(output.splitlines()[-1]) == json.loads(file.read_text())


def test_steps_that_there_was_no_time_for_are_no_acceptance(tmp_path):
    file = tmp_path / "accepted.json"
    command = ["--device", "cpu", "--preset", "tiny", "--json", str(file), "--budget-s", "0"]
    assert main([*command, "--steps", "environment"]) == 1
    assert json.loads(file.read_text())["left"] == ["environment"]


def test_an_unknown_step_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        accept(tmp_path / "accepted.json", "nope")
    assert "--steps: unknown 'nope'; known: environment" in capsys.readouterr().err


def test_a_kernel_that_is_causal_from_the_top_left_is_found():
    def top_left(query, key, value, *rest):
        cu_q, cu_k, is_causal = rest[0], rest[1], rest[-1]
        if not is_causal:
            return by_formula(query, key, value, *rest)
        keys = torch.cat([torch.arange(k, k + q) for k, q in zip(cu_k, cu_q.diff(), strict=False)])
        return by_formula(query, key[keys], value[keys], cu_q, cu_q, *rest[2:])

    found = {
        name.partition(": ")[2]: error
        for name, error, _ in errors(top_left, torch.device("cpu"), [(4, 2, 32)])
    }
    assert {name for name, error in found.items() if error > MAX_OUTPUT_ERROR} == {
        "own tokens behind an ancestor"
    }


def test_it_needs_none_of_the_jobs_packages():
    code = "import sys, bench.run, bench.acceptance.scores as _, bench.acceptance.speed as _, "
    code += "bench.acceptance.start as _; sys.exit(any(m in sys.modules for m in "
    code += "('ray', 'typer', 'decord', 'av', 'pyarrow', 'shardrank.jobs')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
