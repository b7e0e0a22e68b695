"""What a user installs: the wheel in an environment of its own, and a checkout without an install.

The environment has the packages that we depend on from the tests' own, and nothing of ours.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.job_cases import text_rows, write_sets

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "golden" / "tiny"
USERS_OWN = ("jobs/__init__.py", "serve.py", "actors.py", "bench/__init__.py")

pytestmark = pytest.mark.slow


def run(
    command: Sequence[str], folder: Path, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """In a folder, of whose modules a user may have any."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RAY_ADDR"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since building leaves things behind."""
    copy = tmp_path_factory.mktemp("checkout") / "shardrank"
    left = shutil.ignore_patterns(
        ".*", "tests", "demo", "out", "build", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=left)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("built")
    build = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"
    run([sys.executable, "-c", build.format("sdist"), str(folder)], checkout)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / packed.name.removesuffix(".tar.gz")
    run([sys.executable, "-c", build.format("wheel"), str(folder)], unpacked)
    return folder


def fresh_environment(folder: Path) -> Path:
    """Its python."""
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but .pth files there are not read: no editable install is.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = fresh_environment(tmp_path_factory.mktemp("installed") / "venv")
    (wheel,) = built.glob("*.whl")
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)]
    run(pip, built)
    return python


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """Modules of a user that have the names of our folders, and must not be imported for ours."""
    for name in USERS_OWN:
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('a module of the user was imported')\n")
    return tmp_path / "work"


def rerank(command: Sequence[str], folder: Path, data: Path) -> None:
    sets = write_sets(data / "sets.parquet", text_rows(3, 4))
    options = ("--output", str(data / "out"), "--model", str(TINY), "--threads", "1")
    run([*command, sets, *options], folder)
    rows = pq.read_table(data / "out" / "scores").to_pylist()
    assert len(rows) == 12 and all(row["error_code"] is None for row in rows)


def test_the_wheel_is_one_package_with_all_its_files(installed: Path) -> None:
    (packages,) = installed.parents[1].glob("lib/python*/site-packages")
    ours = {path.name for path in packages.iterdir()} - {"dependencies.pth"}
    assert {name for name in ours if not name.endswith(".dist-info")} == {"shardrank"}
    files = [path.relative_to(packages).as_posix() for path in packages.rglob("*")]
    for folder in ("actors", "jobs", "serve"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"shardrank/{path.relative_to(ROOT).as_posix()}" in files
    others = ("config.yaml", "grafana.json", "playground.html")
    for name in ("py.typed", "jobs/evaluate/page.css", *(f"serve/{name}" for name in others)):
        assert f"shardrank/{name}" in files


def test_an_installed_package_is_imported_beside_a_users_own_modules(
    installed: Path, users_folder: Path
) -> None:
    names = "Reranker, RerankerConfig, CandidateSet, RerankError, errors"
    modules = "shardrank.actors.scorer, shardrank.jobs.run.execution, shardrank.serve.deployment"
    code = f"from shardrank import {names}; import {modules}; print(shardrank.__file__)"
    place = run([str(installed), "-c", code], users_folder).stdout
    assert Path(place.strip()).is_relative_to(installed.parents[1])


def test_an_installed_command_runs_beside_a_users_own_modules(
    installed: Path, users_folder: Path
) -> None:
    command = str(installed.with_name("shardrank"))
    assert "rerank" in run([command, "--help"], users_folder).stdout
    refused = run([command, "bench"], users_folder, check=False)
    assert refused.returncode == 2
    assert "run `python -m bench` in a checkout" in refused.stderr


@pytest.mark.parametrize("how", ["the wheel", "a checkout without an install"])
def test_a_job_runs_on_a_ray_of_its_own(
    how: str, request: pytest.FixtureRequest, users_folder: Path, tmp_path: Path
) -> None:
    """`-m` puts the folder first on the path of the command and of Ray's workers."""
    if how == "the wheel":
        python, folder = request.getfixturevalue("installed"), users_folder
    else:
        python = fresh_environment(tmp_path / "venv")
        folder = request.getfixturevalue("checkout")
    rerank([str(python), "-m", "shardrank.jobs.rerank"], folder, tmp_path)
