"""deploy/'s manifests for KubeRay, held against its CRDs, Ray's autoscaler and our own commands.

No cluster is asked, and no Ray is started.
"""

import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml
from packaging.version import Version
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, InstanceReconcileConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.scripts.scripts import cli as ray_cli

from shardrank.cli import app
from tests.deploy.kuberay import check

ROOT = Path(__file__).parents[2]
JOB, SERVICE = "rayjob.yaml", "rayservice.yaml"
BOTH = pytest.mark.parametrize("name", [JOB, SERVICE])
RAY_VERSION = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
UNITS = {"Mi": 2**20, "Gi": 2**30}


@cache
def _loaded(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / name).read_text("utf-8"))


def manifest(name: str) -> dict[str, Any]:
    """A copy in which YAML's aliases are copies too: one may be changed without the others."""
    return _unshared(_loaded(name))


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def cluster(name: str) -> dict[str, Any]:
    spec = manifest(name)["spec"]
    return spec["rayClusterSpec" if name == JOB else "rayClusterConfig"]


def workers(name: str) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster(name)["workerGroupSpecs"]}


def pods(name: str) -> list[dict[str, Any]]:
    """The head's, then the workers'."""
    groups = [cluster(name)["headGroupSpec"], *workers(name).values()]
    return [group["template"]["spec"] for group in groups]


def num_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@BOTH
def test_kuberay_knows_every_field_and_misses_none(name):
    check(manifest(name))


BROKEN = [
    ("spec.backofLimit", 2, "backofLimit"),
    ("spec.rayClusterSpec.autoscalerOptions.version", "v3", "v3"),
    ("spec.rayClusterSpec.authOptions.mode", "none", "none"),
    ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 3, "string"),
    ("spec.rayClusterSpec.headGroupSpec.template", None, "template"),
    ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", None, "minReplicas"),
    ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "8", "integer"),
    ("spec.rayClusterSpec.workerGroupSpecs.1.maxReplica", 8, "maxReplica"),
    ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.tolerations.0.effects", "x", "effects"),
    ("POD.containers.0.resources.limits.memory", "24 GB", "24 GB"),
    ("POD.containers.0.env.2.value", 5, "string"),
    ("POD.containers.0.env.0.valueFrom.secretKeyRef.key", None, "key"),
    ("POD.containers.0.livenessProbe.httpGet.port", None, "port"),
    ("POD.containers.0.volumeMounts.0.mountPath", None, "mountPath"),
    ("POD.volumes.0.emptyDir.size", "5Gi", "size"),
]


@pytest.mark.parametrize(("place", "value", "named"), BROKEN, ids=[each[0] for each in BROKEN])
def test_an_unknown_field_a_wrong_type_and_a_missing_field_are_refused(place, value, named):
    """None takes the field away."""
    broken = manifest(JOB)
    place = place.replace("POD", "spec.rayClusterSpec.headGroupSpec.template.spec")
    *path, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    within: Any = broken
    for step in path:
        within = within[step]
    if value is None:
        del within[last]
    else:
        within[last] = value
    with pytest.raises(jsonschema.ValidationError, match=re.escape(named)):
        check(broken)


@BOTH
def test_the_operators_own_rules_hold(name):
    """Those beyond the CRDs: its webhook and controller refuse the rest."""
    spec, metadata = cluster(name), manifest(name)["metadata"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", metadata["name"])
    assert spec["rayVersion"] == RAY_VERSION
    assert Version(RAY_VERSION) >= Version("2.56")  # from then on a group may have a priority,
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"  # here
    assert all(pod.get("restartPolicy", "Never") == "Never" for pod in pods(name))
    assert all("upgradeStrategy" not in each for each in (spec, spec["headGroupSpec"]))


@BOTH
def test_nobody_submits_without_the_token(name):
    assert cluster(name)["authOptions"] == {"mode": "token"}


@BOTH
def test_no_secret_is_in_the_file(name):
    variables = [each for pod in pods(name) for each in pod["containers"][0]["env"]]
    secret = [each for each in variables if re.search("KEY|SECRET|TOKEN|PASSWORD", each["name"])]
    assert secret and all(set(each["valueFrom"]) == {"secretKeyRef"} for each in secret)


@BOTH
def test_what_a_pod_asks_for_is_what_it_gets(name):
    """Kubernetes wants it of GPUs; of the rest, it keeps a full node from ending the pod."""
    for pod in pods(name):
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


@BOTH
def test_every_pod_is_the_images_user_and_no_more(name):
    (user,) = re.findall(r"^USER (\d+):\1$", (ROOT / "deploy/Containerfile").read_text(), re.M)
    for pod in pods(name):
        identity, (container,) = pod["securityContext"], pod["containers"]
        assert identity["runAsNonRoot"] and identity["runAsUser"] == identity["fsGroup"] == int(
            user
        )
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@BOTH
def test_rays_object_store_fits_into_shared_memory(name):
    """Else Ray takes the disk for it, and says so in its logs only."""
    for pod in pods(name):
        (container,) = pod["containers"]
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each["emptyDir"] for each in pod["volumes"]}
        assert mounts == {"shm": "/dev/shm", "cache": "/cache"} and mounts.keys() == volumes.keys()
        assert volumes["shm"]["medium"] == "Memory"
        memory = num_bytes(container["resources"]["limits"]["memory"])
        taken = memory * DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
        assert taken <= num_bytes(volumes["shm"]["sizeLimit"]) < memory / 2


@BOTH
def test_spot_machines_take_one_group_and_others_the_other(name):
    rules, tolerated = {}, {}
    for group, spec in workers(name).items():
        pod = spec["template"]["spec"]
        affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = affinity["nodeSelectorTerms"]
        rules[group] = {rule["key"]: rule["operator"] for rule in term["matchExpressions"]}
        tolerated[group] = {each["key"] for each in pod["tolerations"]}
    spot = "cloud.google.com/gke-spot"
    assert rules["gpu-spot"][spot] == "In" and rules["gpu-on-demand"][spot] == "DoesNotExist"
    assert tolerated["gpu-spot"] - tolerated["gpu-on-demand"] == {spot}
    assert all("nvidia.com/gpu" in keys for keys in tolerated.values())


def autoscaling(name: str) -> AutoscalingConfig:
    """What Ray's autoscaler makes of the manifest."""
    metadata = {"name": "shardrank", "namespace": "default"}
    derived = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster(name)})
    return AutoscalingConfig(derived, skip_content_hash=True)


def started(name: str, num_gpus: int, unavailable: dict[str, float]) -> dict[str, int]:
    """The workers that Ray's autoscaler starts from none for as many actors of one GPU each."""
    config = autoscaling(name)
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        disable_launch_config_check=True,
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make({"GPU": 1})] * num_gpus
        ),
        cloud_resource_availabilities=unavailable,
        recoverable_resource_availabilities=unavailable,
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    assert not reply.infeasible_resource_requests
    return {each.instance_type: each.count for each in reply.to_launch}


@BOTH
def test_workers_come_from_none_with_a_gpu_each(name):
    types = autoscaling(name).get_config("available_node_types")
    assert {"gpu-spot", "gpu-on-demand"} == types.keys() - {"headgroup"}
    for group in ("gpu-spot", "gpu-on-demand"):
        assert types[group]["min_workers"] == workers(name)[group]["replicas"] == 0
        assert types[group]["resources"]["GPU"] == 1 < types[group]["resources"]["CPU"]
    assert "GPU" not in types["headgroup"]["resources"]


@BOTH
def test_spot_machines_are_asked_first_and_others_where_there_are_none(name):
    """By Ray's own scheduler: 0 is a group that has just been given up."""
    assert started(name, 5, {}) == {"gpu-spot": 5}
    assert started(name, 5, {"gpu-spot": 0.0}) == {"gpu-on-demand": 5}
    assert started(name, 12, {}) == {"gpu-spot": 8, "gpu-on-demand": 4}


@BOTH
def test_a_spot_machine_that_does_not_come_is_given_up_by_a_variable_that_ray_reads(name):
    (variable,) = cluster(name)["autoscalerOptions"]["env"]
    assert f'"{variable["name"]}"' in inspect.getsource(InstanceReconcileConfig)
    limit = InstanceReconcileConfig().allocate_status_timeout_s
    assert 300 < int(variable["value"]) < limit


@BOTH
def test_a_pod_that_is_to_stop_drains_in_the_time_that_it_has(name):
    for pod in pods(name)[1:]:
        shell, option, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, option) == ("bash", "-c")
        drain, after = script.split(" && ")
        command = ray_cli.commands["drain-node"]
        given = command.make_context("drain-node", shlex.split(drain)[2:]).params
        asleep = int(re.fullmatch(r"sleep (\d+); ray stop", after)[1])
        deadline = given["deadline_remaining_seconds"]
        assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION" and given["node_id"] is None
        assert 60 < deadline <= asleep < pod["terminationGracePeriodSeconds"]


@BOTH
def test_rays_agent_is_asked_what_it_tells_without_a_token(name):
    import ray.dashboard.http_server_agent as agent

    for pod in pods(name):
        (container,) = pod["containers"]
        asked = [container["livenessProbe"], container["readinessProbe"]]
        for probe in asked if name == JOB else asked[:1]:
            assert probe["httpGet"]["path"] in agent.PUBLIC_EXACT_PATHS
            assert probe["httpGet"]["port"] == 52365


def test_the_jobs_entrypoint_is_a_command_that_we_parse():
    spec = manifest(JOB)["spec"]
    program, name, *arguments = shlex.split(spec["entrypoint"])
    command = typer.main.get_command(app).commands[name]
    given = command.make_context(name, arguments).params
    assert program == "shardrank" and given["output"] and given["model"]
    assert given["device"] == "cuda", "no GPU is there when it starts"
    assert given["num_actors"] <= min(each["maxReplicas"] for each in workers(JOB).values())


def test_a_job_goes_on_in_a_new_cluster_and_gives_its_machines_back():
    spec = manifest(JOB)["spec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    assert "submissionMode" not in spec  # the default: a head that dies takes no submitter with it


def test_the_services_configuration_is_serve_config_yaml():
    """Which tests/serve/test_deployment.py holds against Serve's schema and the application's."""
    config = yaml.safe_load((ROOT / "serve/config.yaml").read_text("utf-8"))
    assert yaml.safe_load(manifest(SERVICE)["spec"]["serveConfigV2"]) == config


def test_requests_come_to_a_worker_that_takes_them():
    from shardrank.serve.gate.gate import OPEN_PATHS

    config = yaml.safe_load(manifest(SERVICE)["spec"]["serveConfigV2"])
    (deployment,) = config["applications"][0]["deployments"]
    for pod in pods(SERVICE)[1:]:
        (container,) = pod["containers"]
        port = {each["name"]: each["containerPort"] for each in container["ports"]}["serve"]
        assert port == config["http_options"]["port"]
        script = container["readinessProbe"]["exec"]["command"][-1]
        asked = re.findall(rf"wget -q -T 4 -O /dev/null http://localhost:{port}(\S+)", script)
        assert asked == ["/-/healthz", "/ready"] and asked[1] in OPEN_PATHS
        assert deployment["graceful_shutdown_timeout_s"] < pod["terminationGracePeriodSeconds"]
        cpus = int(container["resources"]["limits"]["cpu"])
        assert deployment["ray_actor_options"]["num_cpus"] <= cpus
    assert deployment["autoscaling_config"]["max_replicas"] <= 8
    assert cluster(SERVICE)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_every_pod_of_the_service_has_the_endpoints_variables():
    from shardrank.serve.gate.key_file import KEYS_VARIABLE
    from shardrank.serve.proxy import ACCESS_LOG_VARIABLE

    for pod in pods(SERVICE):
        given = {each["name"] for each in pod["containers"][0]["env"]}
        assert given == {KEYS_VARIABLE, ACCESS_LOG_VARIABLE}
