"""A Ray of our own is ours alone: its secret, its files."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shardrank.cluster import _temporary_directory, make_token, private_directory
from tests.support.listening import LOOPBACK

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_secret_is_for_its_owner_from_its_first_moment(home: Path) -> None:
    before = os.umask(0)
    try:
        make_token()
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    assert (mode_of(token), mode_of(token.parent)) == (0o600, 0o700)
    secret = token.read_text()
    assert len(secret) >= 32
    token.chmod(0o644)  # as Ray itself leaves it
    make_token()
    assert token.read_text() == secret and mode_of(token) == 0o600


LOCAL = """
import json, os, stat, threading
from pathlib import Path
from shardrank.cluster import connected
from tests.support.listening import listening
os.setsid()
seen, is_started = set(), threading.Event()

def look():
    place = Path.home() / ".ray"
    while not is_started.wait(0.001):
        for path in (place, place / "auth_token"):
            if path.exists():
                seen.add((path.name, oct(stat.S_IMODE(path.stat().st_mode))))

looking = threading.Thread(target=look, daemon=True)
looking.start()
with connected(None):
    is_started.set()
    looking.join()
    print(json.dumps([sorted(seen), listening(os.getpid())]))
"""


def test_a_local_ray_is_nobody_elses(home: Path) -> None:
    """The job's as much as the endpoint's: neither its secret nor a port is open for a moment."""
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    seen, ports = json.loads(done.stdout.splitlines()[-1])
    assert seen == [[".ray", "0o700"], ["auth_token", "0o600"]]
    assert set(ports) <= LOOPBACK and sum(ports.values()) > 5, ports


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_TOKEN", "s"), ("RAY_AUTH_TOKEN_PATH", "/p"), ("RAY_AUTH_MODE", "disabled")],
)
def test_where_ray_needs_no_secret_of_ours_none_is_made(
    name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    make_token()
    assert not (home / ".ray").exists()


def test_a_directory_is_kept_where_it_is_ours_alone(tmp_path: Path) -> None:
    place = str(tmp_path / "ray-1")
    assert private_directory(place) == private_directory(place) == place
    assert mode_of(Path(place)) == 0o700


@pytest.mark.parametrize("trap", ["link", "open", "file", "fifo"])
def test_what_somebody_else_put_there_first_is_not_used(trap: str, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "ray-1", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    match trap:
        case "link":
            place.symlink_to(elsewhere)
        case "open":
            place.mkdir()
            place.chmod(0o777)
        case "file":
            place.touch()
        case "fifo":
            os.mkfifo(place)
    made = Path(private_directory(str(place)))
    assert made.parent == tmp_path and made != place and not made.is_symlink()
    assert mode_of(made) == 0o700 and list(elsewhere.iterdir()) == []


def test_a_place_too_long_for_rays_sockets_is_not_taken(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 40)
    assert _temporary_directory(str(deep)).startswith("/tmp/ray-")
