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


def module_of(path: Path) -> str:
    """Its dotted name as it is imported: the three layers are links inside the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("shardrank", *parts) if parts[0] in LAYERS else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(path): path
    for folder in (*LAYERS, "bench", "demo", "shardrank")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if folder != "shardrank" or path.parent == ROOT / "shardrank"
}


def imported(path: Path, *, with_types: bool = True) -> set[str]:
    """What a file imports, anywhere in it: a module of ours, or the full name that it asks for."""
    names: set[str] = set()
    unread: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while unread:
        node = unread.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            asked = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in asked}
        elif with_types or not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            unread += ast.iter_child_nodes(node)
    return names


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


ABOVE_THE_ENGINE = ("shardrank.jobs", "shardrank.serve", "shardrank.cluster", "ray", "fastapi")


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("shardrank.actors", ABOVE_THE_ENGINE),
        ("shardrank.cluster", ("shardrank",)),
        ("shardrank.jobs", ("shardrank.serve", "fastapi")),
        ("shardrank.serve", ("shardrank.jobs",)),
    ],
)
def test_imports_go_down_only(layer, forbidden):
    """The command line is above all; what is no part of the package is named by none of it."""
    for name, path in MODULES.items():
        if is_within(name, (layer,)):
            wrong = (*forbidden, "shardrank.cli", "demo", "bench")
            assert [each for each in imported(path) if is_within(each, wrong)] == [], path


@pytest.mark.parametrize(
    ("layer", "rooms"),
    [
        ("actors", ("fetch", "media", "model")),
        ("jobs", ("inputs", "units", "outputs", "run")),
        ("jobs", ("inputs", "units", "evaluate")),
        ("jobs", ("inputs", "units", "outputs", "retrieve")),
        ("serve", ("dialects", "gate")),
        ("serve", ("dialects", "queue")),
    ],
)
def test_a_room_imports_none_above_it(layer, rooms):
    """Each list from the ground floor up."""
    names = [f"shardrank.{layer}.{room}" for room in rooms]
    for floor, room in enumerate(names):
        above = tuple(names[floor + 1 :])
        for name, path in MODULES.items():
            if is_within(name, (room,)):
                assert [each for each in imported(path) if is_within(each, above)] == [], path


def test_no_import_goes_in_a_circle():
    """Names that only a type checker reads are no imports."""
    left = {name: imported(path, with_types=False) for name, path in MODULES.items()}
    while free := {name for name, needed in left.items() if not needed & (left.keys() - {name})}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert left == {}


def test_no_folder_of_the_product_is_too_wide_to_walk():
    folders = [path.parent for name, path in MODULES.items() if name.startswith("shardrank")]
    assert {folder: n for folder in folders if (n := folders.count(folder)) > 14} == {}


OLD_NAMES = re.compile(
    r"""(-m\ |import_path:\ |IMPORT_PATH=|["'])(actors|jobs|serve)\.(?!py\b)[a-z_]+\b
    |^\s*(from|import)\ (actors|jobs|serve)\b""",
    re.VERBOSE | re.MULTILINE,
)


def test_the_package_has_one_import_name():
    """A user's own jobs/ or serve.py comes first on the path of every worker of Ray."""
    texts = [*ROOT.glob("*.*"), *ROOT.glob("serve/*.yaml"), *ROOT.glob("tests/**/*.py")]
    for path in (*MODULES.values(), *texts):
        if path.is_file():
            found = OLD_NAMES.search(path.read_text("utf-8"))
            assert found is None, f"{path}: {found}"


def test_the_engine_imports_without_ray_and_without_the_job():
    code = "import sys, shardrank.actors.reranker as _; sys.exit(any(m in sys.modules for m in "
    code += "('ray', 'shardrank.jobs')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_engine_scores_without_the_seconds_that_transformers_takes_to_import():
    code = "import sys; from shardrank.actors import Reranker; "
    code += "Reranker('tests/golden/tiny').score('a query', ['a document']); "
    code += "sys.exit(any(m.split('.')[0] == 'transformers' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "code",
    [
        "import shardrank.cli; from shardrank.jobs.rerank import own_engine; "
        "from shardrank.jobs.run.pipeline import packed; packed(own_engine())",
        "from shardrank import RerankerConfig; "
        "from shardrank.actors.preprocessor import Preprocessor; "
        "Preprocessor(RerankerConfig('tests/golden/tiny'))",
    ],
    ids=["a job's driver", "what prepares texts and images"],
)
def test_what_computes_nothing_does_without_torch(code):
    """It takes two seconds and 200 MB."""
    code += "; import sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
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
    assert plan.count("pip install") == 1 and "-c constraints.txt" in plan
    assert ("[dev]" in plan) == ("chromium" in plan) == (target == "test")


def test_what_either_command_installed_is_not_installed_again(tmp_path):
    for name in ("pyproject.toml", "constraints.txt", ".venv/bin/python", ".venv/.installed-dev"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / ".venv/.installed").touch()
    assert "pip" not in make(tmp_path, "--dry-run", "test").stdout
    (tmp_path / ".venv/.installed-dev").unlink()
    assert "pip" not in make(tmp_path, "--dry-run", "demo").stdout
    assert "[dev]" in make(tmp_path, "--dry-run", "test").stdout


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
    folders = {path.parent for path in MODULES.values()} - {ROOT / "demo"}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    assert all((ROOT / "shardrank" / name).resolve() == ROOT / name for name in LAYERS)
    assert re.fullmatch(r"shardrank\.cli:main", PROJECT["scripts"]["shardrank"])


OPENINGS = ("Of", "As", "By", "With", "Who")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_docstring_has_a_subject_or_names_the_thing(name):
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    assert [text for text in texts if text and text.split()[0] in OPENINGS] == []
