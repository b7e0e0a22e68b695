"""The commands of docs/cluster.md and of the files' heads: Ray's own parser takes them, and their
files are there.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import cli as ray_cli

ROOT = Path(__file__).parents[2]
PAGE = "docs/cluster.md"
PAGES = (
    PAGE,
    "cluster.yaml",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "deploy").iterdir()),
)


def code(name: str) -> list[str]:
    """Indented code, also behind a file's comment marks; continued lines joined."""
    text = (ROOT / name).read_text("utf-8")
    marks = r"^ {4,}" if name.endswith(".md") else r"^#   +"
    lines = "\n".join(re.findall(marks + r"(.*)", text, re.MULTILINE))
    return [re.split(r"\s{3,}", line.strip())[0] for line in lines.replace("\\\n", " ").split("\n")]


def ray_commands(name: str) -> list[list[str]]:
    steps = [step for line in code(name) for step in line.split(" && ")]
    return [shlex.split(step.partition(">")[0])[1:] for step in steps if step.startswith("ray ")]


def parsed(command: Any, arguments: list[str]) -> None:
    """Raises click's UsageError. What follows a `--` is the job's."""
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("name", PAGES)
def test_rays_own_parser_takes_the_commands(name):
    commands = ray_commands(name)
    assert commands or not name.startswith(("docs", "cluster"))
    for arguments in commands:
        parsed(ray_cli, arguments)


def test_a_wrong_option_of_ray_is_found():
    with pytest.raises(Exception, match="No such option"):
        parsed(ray_cli, ["start", "--head", "--dashboard-hots=127.0.0.1"])


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_command_names_are_there(name):
    words = [word for line in code(name) for word in shlex.split(line, comments=True)]
    files = [word for word in words if re.fullmatch(r"[\w./-]+\.yaml|deploy/\S+", word)]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_each_way_to_a_cluster_says_what_was_not_run():
    """And names a test where one runs a step, or reads its file."""
    ways = re.split(r"^## ", (ROOT / PAGE).read_text("utf-8"), flags=re.MULTILINE)
    for title in ("AWS", "Google Cloud", "Kubernetes", "A set of machines"):
        (way,) = (each for each in ways if each.startswith(title + "\n"))
        assert re.search(r"\*[^*]*\b(not run|no step was run|no step run) here", way, re.IGNORECASE)
        tests = re.findall(r"`(tests/[\w./]+)`", way)
        assert tests and all((ROOT / test).exists() for test in tests)


def test_the_page_has_the_commands_of_the_manifests_heads():
    page = {line for line in code(PAGE) if line.startswith("kubectl")}
    for name in ("deploy/rayjob.yaml", "deploy/rayservice.yaml"):
        given = [line for line in code(name) if line.startswith("kubectl")]
        assert given and set(given) - {f"kubectl delete -f {name}"} <= page
