"""cluster.yaml and its variant for GCP, held against Ray's schema and our rules; no cloud asked."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
AWS, GCP = "cluster.yaml", "deploy/cluster-gcp.yaml"
BOTH = pytest.mark.parametrize("name", [AWS, GCP])


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def config(name: str) -> dict[str, Any]:
    return yaml.safe_load(text_of(name))


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


def start_commands(name: str, key: str) -> list[str]:
    return [command for command in config(name)[key] if "ray start" in command]


@BOTH
def test_rays_own_schema_accepts_it(name):
    validate_config(prepare_config(config(name)))


def broken(name: str, change: str) -> dict[str, Any]:
    bad = config(name)
    worker = next(each for kind, each in bad["available_node_types"].items() if kind != "head")
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
    assert bad != config(name)
    return bad


@BOTH
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
def test_rays_own_schema_refuses(name, change):
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(broken(name, change)))


@BOTH
def test_every_value_has_a_comment(name):
    assert uncommented_values(text_of(name)) == []


def test_a_value_without_a_comment_is_found():
    assert uncommented_values("a: 1\n# why\nb: 2\nc:\n  - d\n") == ["a: 1", "- d"]


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_token_authentication(key):
    (command,) = start_commands(AWS, key)
    environment = command.partition("ray start")[0]
    assert "export " in environment and "RAY_AUTH_MODE=token" in environment
    assert 'RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"' in environment


def test_the_token_comes_from_a_file_that_only_its_owner_reads():
    mounts, setup = config(AWS)["file_mounts"], config(AWS)["setup_commands"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in setup[0]
    for name in (AWS, GCP):
        assert not re.search(r"RAY_AUTH_TOKEN=|\b[0-9a-f]{32,}\b", text_of(name))


def test_the_machines_credentials_are_given_for_session_tokens_alone():
    for node_type in config(AWS)["available_node_types"].values():
        assert node_type["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_the_dashboard_listens_on_loopback():
    (command,) = start_commands(AWS, "head_start_ray_commands")
    assert re.findall(r"--dashboard-host[= ](\S+)", command) == ["127.0.0.1"]
    assert not any("0.0.0.0" in text_of(name) for name in (AWS, GCP))


@BOTH
def test_workers_come_when_asked_for_and_are_given_back(name):
    types = config(name)["available_node_types"]
    gpus = [each for each in types.values() if "GPU" in each["resources"]]
    assert gpus and "GPU" not in types[config(name)["head_node_type"]]["resources"]
    assert all(each["min_workers"] == 0 for each in gpus)
    assert 0 < config(name)["idle_timeout_minutes"] <= 30


def test_everything_that_pip_needs_is_mounted():
    mounts = config(AWS)["file_mounts"]
    ours = {local for remote, local in mounts.items() if remote.startswith("~/shardrank/")}
    assert {"actors", "jobs", "serve", "pyproject.toml", "constraints.txt"} <= ours
    assert [name for name in ours if not (ROOT / name).exists()] == []
    (install,) = (command for command in config(AWS)["setup_commands"] if "pip install" in command)
    assert "-c ~/shardrank/constraints.txt" in install and '"$HOME/shardrank[submit]"' in install


def test_nodes_have_one_python_and_one_ray():
    types = config(AWS)["available_node_types"].values()
    assert len({each["node_config"]["ImageId"] for each in types}) == 1
    disks = [disk for each in gcp_nodes() for disk in each["disks"]]
    assert len({disk["initializeParams"]["sourceImage"] for disk in disks}) == 1
    assert re.search(r"^ray==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def gcp_nodes() -> list[dict[str, Any]]:
    return [each["node_config"] for each in config(GCP)["available_node_types"].values()]


def test_what_nodes_install_and_run_is_the_same_on_either_cloud():
    """So the tests of one hold for the other."""
    clouds = ("provider", "auth", "available_node_types", "head_setup_commands")
    aws, gcp = (
        {key: value for key, value in config(name).items() if key not in clouds}
        for name in (AWS, GCP)
    )
    assert aws == gcp and {"file_mounts", "setup_commands", "head_start_ray_commands"} <= set(aws)


def test_gcps_disks_lie_in_the_zone_of_their_machines():
    zone = config(GCP)["provider"]["availability_zone"]
    kinds = {disk["initializeParams"]["diskType"] for each in gcp_nodes() for disk in each["disks"]}
    assert kinds == {f"zones/{zone}/diskTypes/pd-balanced"}


def test_gcps_gpu_machines_may_be_taken_away():
    head, *workers = (each.get("scheduling", {}) for each in gcp_nodes())
    assert not head and all(each["onHostMaintenance"] == "TERMINATE" for each in workers)
    assert {each["provisioningModel"] for each in workers} == {"SPOT"}
