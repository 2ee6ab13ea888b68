from __future__ import annotations

import importlib
import re
import tomllib

import pytest
import yaml

from app.config import Settings
from app.rectification.vllm_policy import PREFIX, ServerPolicy

PROBES = {"startupProbe": "/startupz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}


@pytest.fixture
def services(root):
    return yaml.safe_load((root / "docker-compose.yml").read_text("utf-8"))["services"]


@pytest.fixture
def deployment(root):
    documents = yaml.safe_load_all((root / "deploy/kubernetes/guard.yaml").read_text("utf-8"))
    return {document["kind"]: document for document in documents}


@pytest.fixture
def dockerfile(root):
    return (root / "Dockerfile").read_text("utf-8")


def assert_setting_exists(name: str) -> None:
    group, field = name.removeprefix("SLUICEWAY_").lower().split("__")
    assert field in type(getattr(Settings(), group)).model_fields


def test_everything_that_is_mounted_exists(services, root) -> None:
    mounted = [volume for one in services.values() for volume in one.get("volumes", [])]
    folders = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert folders
    for folder in folders:
        assert (root / folder).is_dir()


def test_named_volumes_are_declared(services, root) -> None:
    document = yaml.safe_load((root / "docker-compose.yml").read_text("utf-8"))
    mounted = [volume for one in services.values() for volume in one.get("volumes", [])]
    named = {volume.split(":")[0] for volume in mounted if not volume.startswith("./")}
    assert named == set(document["volumes"])


def test_containers_are_confined(services) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_ports_are_open_on_this_machine_only(services) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_are_pinned(services, dockerfile) -> None:
    pinned = re.compile(r"[\w./-]+:v?\d+\.\d+(\.\d+)?[\w.-]*")
    images = [service["image"] for service in services.values()]
    images += re.findall(r"^ARG \w+_IMAGE=(\S+)$", dockerfile, re.MULTILINE)
    assert len(images) == len(services) + 2
    for image in images:
        assert pinned.fullmatch(image)


def test_our_image_carries_the_version_of_the_project(services, deployment, root) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    (container,) = deployment["Deployment"]["spec"]["template"]["spec"]["containers"]
    image = f"sluiceway:{project['version']}"
    assert services["guard"]["image"] == container["image"] == image
    assert services["guard-gpu"]["image"] == f"{image}-gpu"


def test_the_targets_are_stages_of_the_dockerfile(services, dockerfile) -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE)
    assert stages[-1] == services["guard"]["build"]["target"] == "cpu"
    assert services["guard-gpu"]["build"]["target"] in stages


def test_settings_of_the_containers_exist(services, dockerfile) -> None:
    names = {
        name
        for service in services.values()
        for name in service.get("environment", {})
        if name.startswith("SLUICEWAY_") and not name.startswith(PREFIX)
    }
    names |= set(re.findall(r"\b(SLUICEWAY_\w+)=", dockerfile))
    assert len(names) > 5
    for name in names:
        assert_setting_exists(name)


def test_the_vllm_server_steers_by_its_variables(services, root) -> None:
    environment = services["vllm"]["environment"]
    default = re.compile(r"\$\{\w+:-([^}]*)\}")
    policy = ServerPolicy.read({name: default.sub(r"\1", v) for name, v in environment.items()})
    assert policy is not None
    assert policy.control.epsilon > 0
    assert "./models:/models:ro" in services["vllm"]["volumes"]
    assert policy.critic.is_relative_to("/models")
    module, _, name = services["vllm"]["command"][-1].partition("=")[2].partition(":")
    assert hasattr(importlib.import_module(module), name)


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder(dockerfile, root) -> None:
    allowed = {
        line.removeprefix("!")
        for line in (root / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert {source.split("/")[0] for source in copied} == allowed
    for source in copied:
        assert (root / source).exists()


def test_no_stage_ends_as_root(dockerfile) -> None:
    stages = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]
    served = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert len(served) == 2
    for stage in served:
        assert re.findall(r"^USER (.+)$", stage, re.MULTILINE) == ["10001:10001"]
        assert "/readyz" in re.search(r"HEALTHCHECK(?:.*\\\n)*.*", stage)[0]
        assert "HF_HUB_OFFLINE=1" in stage


def test_the_pod_is_probed_and_confined(deployment) -> None:
    pod = deployment["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {name: container[name]["httpGet"]["path"] for name in PROBES} == PROBES
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_the_probes_are_routes(deployment) -> None:
    from app.main import create_app

    assert set(PROBES.values()) <= create_app(Settings()).openapi()["paths"].keys()


def test_service_budget_and_monitor_select_the_pods(deployment, root) -> None:
    labels = deployment["Deployment"]["spec"]["template"]["metadata"]["labels"]
    monitor = yaml.safe_load((root / "deploy/kubernetes/servicemonitor.yaml").read_text("utf-8"))
    assert deployment["Service"]["spec"]["selector"] == labels
    assert deployment["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert monitor["spec"]["selector"]["matchLabels"] == deployment["Service"]["metadata"]["labels"]
    # The name of the service becomes the label `job`, which the alert rules select.
    assert deployment["Service"]["metadata"]["name"] == "guard"


def test_the_pod_gets_longer_to_stop_than_streams_do(deployment, services) -> None:
    grace = Settings().server.shutdown_grace_s
    pod = deployment["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > grace
    assert int(services["guard"]["stop_grace_period"].removesuffix("s")) > grace
