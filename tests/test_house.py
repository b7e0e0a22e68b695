"""What the house promises: layers, pinned versions, the two commands, a licence."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("actors", "jobs", "serve")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)


def requirements() -> list[Requirement]:
    """All but those of the extra `peers`, which no test needs and .venv does not have."""
    extras = [
        names for extra, names in PROJECT["optional-dependencies"].items() if extra != "peers"
    ]
    texts = [*PROJECT["dependencies"], *sum(extras, [])]
    return [each for each in map(Requirement, texts) if each.name != PROJECT["name"]]


def imported(path: Path) -> set[str]:
    """What a file imports, anywhere in it: top-level names, and of our own package its layers."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {_layer(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {_layer(f"{node.module}.{alias.name}") for alias in node.names}
    return names


def _layer(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == "shardrank" else 1])


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("actors", {"shardrank.jobs", "shardrank.serve", "ray", "fastapi", "demo"}),
        ("jobs", {"shardrank.serve", "demo"}),
        ("serve", {"shardrank.jobs", "demo"}),
    ],
)
def test_imports_go_down_only(layer, forbidden):
    for path in sorted((ROOT / layer).rglob("*.py")):
        allowed = (
            {"shardrank.serve"} if path == ROOT / "jobs" / "cli.py" else set()
        )  # one command for both
        assert not imported(path) & (forbidden - allowed), path


def test_the_engine_imports_without_ray_and_without_the_job():
    code = "import sys, shardrank.actors.reranker as _; sys.exit(any(m in sys.modules for m in "
    code += "('ray', 'shardrank.jobs')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_direct_dependency_is_pinned_within_its_range(requirement):
    pinned = {name.lower().replace("_", "-"): version for name, version in PINNED.items()}
    version = pinned[requirement.name.lower().replace("_", "-")]
    assert requirement.specifier.contains(version)


def test_newer_pythons_are_welcome():
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(">=3.11")


def test_ci_runs_the_same_command_as_everybody():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make test")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As from a shell, also where a `make test` runs this test."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def dry_run(target: str) -> subprocess.CompletedProcess[str]:
    return make(ROOT, "--dry-run", "--always-make", target)


@pytest.mark.parametrize(("target", "work"), [("demo", "-m demo.run"), ("test", "-m pytest")])
def test_each_of_the_two_commands_installs_what_it_needs(target, work):
    plan = dry_run(target).stdout
    assert plan.index("-m venv") < plan.index("pip install") < plan.index(work)
    assert "-c constraints.txt" in plan


def test_make_test_lints_and_checks_types():
    plan = dry_run("test").stdout
    steps = ("ruff check", "ruff format --check", "/mypy", "-m pytest")
    assert [step for step in steps if step not in plan] == []


@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        ("no-such-python", "'no-such-python' was not found"),
        ("false", "ShardRank needs Python 3.11 or newer"),
    ],
)
def test_a_missing_or_old_python_is_named(tmp_path, python, sentence):
    """In an empty folder, with `false` for a python whose version check fails."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    made = make(tmp_path, "install", f"PYTHON={python}")
    assert made.returncode != 0 and sentence in made.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_licence_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text and "APPENDIX: How to apply" in text


def test_the_packages_are_those_of_the_repository():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert tool["setuptools"]["packages"]["find"]["include"] == ["shardrank", "shardrank.*"]
    folders = {path.parent for name in LAYERS for path in (ROOT / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    assert re.fullmatch(r"shardrank\.cli:main", PROJECT["scripts"]["shardrank"])
