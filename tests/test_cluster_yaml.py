"""cluster.yaml, held against Ray's own schema and our own rules; no cloud is asked."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "cluster.yaml").read_text("utf-8")


def config() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def uncommented_values(text: str) -> list[str]:
    """Lines with a value (`key: value`, `- item`) that have no comment on or right above them."""
    lines = text.splitlines()
    return [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if re.match(r"\s*(- \S|[^#\s][^#]*?:\s+\S)", line)
        and not above.strip().startswith("#")
        and " # " not in line
    ]


def start_commands(key: str) -> list[str]:
    return [command for command in config()[key] if "ray start" in command]


def test_rays_own_schema_accepts_it():
    validate_config(prepare_config(config()))


def broken(change: str) -> dict[str, Any]:
    bad = copy.deepcopy(config())
    worker = bad["available_node_types"]["gpu_l40s"]
    match change:
        case "an unknown key":
            bad["max_worker"] = 3
        case "an unknown key of a node type":
            worker["max_replicas"] = 3
        case "no resources":
            del worker["resources"]
        case "a count in words":
            bad["max_workers"] = "many"
        case "a head of no type":
            bad["head_node_type"] = "chief"
        case "more workers than allowed":
            worker["min_workers"] = bad["max_workers"] + 1
    assert bad != config()
    return bad


@pytest.mark.parametrize(
    "change",
    [
        "an unknown key",
        "an unknown key of a node type",
        "no resources",
        "a count in words",
        "a head of no type",
        "more workers than allowed",
    ],
)
def test_rays_own_schema_refuses(change):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(broken(change)))


def test_every_value_has_a_comment():
    assert uncommented_values(TEXT) == []


def test_a_value_without_a_comment_is_found():
    assert uncommented_values("a: 1\n# why\nb: 2\nc:\n  - d\n") == ["a: 1", "- d"]


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_token_authentication(key):
    (command,) = start_commands(key)
    environment = command.partition("ray start")[0]
    assert "export " in environment and "RAY_AUTH_MODE=token" in environment
    assert 'RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"' in environment


def test_the_token_comes_from_a_file_that_only_its_owner_reads():
    mounts, setup = config()["file_mounts"], config()["setup_commands"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in setup[0]
    assert not re.search(r"RAY_AUTH_TOKEN=|\b[0-9a-f]{32,}\b", TEXT)


def test_the_machines_credentials_are_given_for_session_tokens_alone():
    for node_type in config()["available_node_types"].values():
        assert node_type["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_the_dashboard_listens_on_loopback():
    (command,) = start_commands("head_start_ray_commands")
    assert re.findall(r"--dashboard-host[= ](\S+)", command) == ["127.0.0.1"]
    assert "0.0.0.0" not in TEXT


def test_workers_come_when_asked_for_and_are_given_back():
    types = config()["available_node_types"]
    gpus = {name: each for name, each in types.items() if "GPU" in each["resources"]}
    assert gpus and "GPU" not in types[config()["head_node_type"]]["resources"]
    assert all(each["min_workers"] == 0 for each in gpus.values())
    assert 0 < config()["idle_timeout_minutes"] <= 30


def test_everything_that_pip_needs_is_mounted():
    mounts = config()["file_mounts"]
    ours = {local for remote, local in mounts.items() if remote.startswith("~/shardrank/")}
    assert {"actors", "jobs", "serve", "pyproject.toml", "constraints.txt"} <= ours
    assert [name for name in ours if not (ROOT / name).exists()] == []
    (install,) = (command for command in config()["setup_commands"] if "pip install" in command)
    assert "-c ~/shardrank/constraints.txt" in install and '"$HOME/shardrank[submit]"' in install


def test_nodes_have_one_python_and_one_ray():
    types = config()["available_node_types"].values()
    assert len({each["node_config"]["ImageId"] for each in types}) == 1
    assert re.search(r"^ray==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
