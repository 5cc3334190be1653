"""The manifests of the how-to: of Kubernetes' form, and in agreement with image and code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.containers import instructions
from tests.support.pages import block_text, blocks, page_text, table
from tests.support.repository import REPOSITORY
from tests.support.services import Service, render

TEMPLATE = REPOSITORY / "template"
PAGE = page_text("how-to/kubernetes.md")
OPERATION = page_text("how-to/operate.md")
BLOCKS = {"sqlite": ["sqlite"], "postgresql": ["secret", "migrate", "service"]}


def manifests(database: str) -> dict[str, Any]:
    """Return what the page has for a database, by kind."""
    documents = [
        document
        for name in BLOCKS[database]
        for document in yaml.safe_load_all(block_text(PAGE, name))
    ]
    return {document["kind"]: document for document in documents}


@pytest.fixture
def pods(database_name: str) -> dict[str, Any]:
    """The pods' specifications, by kind of what makes them."""
    return {
        kind: manifest["spec"]["template"]["spec"]
        for kind, manifest in manifests(database_name).items()
        if kind in ("Deployment", "Job")
    }


@pytest.fixture
def image(service: Service) -> dict[str, str]:
    """The Dockerfile's last words, by instruction."""
    return dict(instructions(service.folder / "Dockerfile"))


def containers(pods: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for pod in pods.values():
        yield from pod.get("initContainers", [])
        yield from pod["containers"]


def constant(module: str, name: str) -> float:
    [value] = re.findall(rf"^{name} = ([\d.]+)", (TEMPLATE / module).read_text(), re.MULTILINE)
    return float(value)


def test_every_manifest_has_kubernetes_form() -> None:
    shown = [block.text for block in blocks(PAGE) if block.language == "yaml"]
    assert len(shown) == sum(map(len, BLOCKS.values()))
    shown.append(block_text(OPERATION, "autoscaler"))
    documents = [document for text in shown for document in yaml.safe_load_all(text)]

    [oldest] = re.findall(r"Kubernetes (1\.\d+) or newer", PAGE)
    for document in documents:
        for version in (oldest, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)


def test_a_pod_has_the_time_that_its_end_may_take(pods: dict[str, Any]) -> None:
    pod = pods["Deployment"]
    [app] = pod["containers"]
    steps = [
        app["lifecycle"]["preStop"]["sleep"]["seconds"],
        constant("app/server/run.py", "GRACEFUL_TIMEOUT"),
        constant("app/telemetry.py", "SHUTDOWN_TIMEOUT"),
        constant("app/lifespan.py", "DISPOSE_TIMEOUT"),
    ]
    documented = re.findall(r"^\| [a-z`].* \| (\d+) \|$", PAGE, re.MULTILINE)

    assert list(map(float, documented)) == steps
    assert f"takes {sum(steps):.0f} s at most" in PAGE
    assert f"waits for {pod['terminationGracePeriodSeconds']}" in PAGE
    assert pod["terminationGracePeriodSeconds"] > sum(steps)


def test_probes_ask_what_the_service_has_and_wait_for_its_answer(
    pods: dict[str, Any], image: dict[str, str]
) -> None:
    [app] = pods["Deployment"]["containers"]
    health = (TEMPLATE / "app/health.py").read_text()
    [port] = app["ports"]

    assert str(port["containerPort"]) == image["EXPOSE"]
    assert f'"--port", "{port["containerPort"]}"' in image["CMD"]
    for probe, path in [("startup", "live"), ("liveness", "live"), ("readiness", "ready")]:
        asked = app[f"{probe}Probe"]["httpGet"]
        assert asked == {"path": f"/health/{path}", "port": port["name"]}
        assert f'@router.get("/{path}"' in health
    patience = constant("app/health.py", "READY_TIMEOUT")
    assert app["readinessProbe"]["timeoutSeconds"] > patience


def test_every_container_runs_as_the_image_does_with_no_rights(
    pods: dict[str, Any], image: dict[str, str]
) -> None:
    user = int(image["USER"])  # a number, or runAsNonRoot could not be checked

    assert user > 0
    for pod in pods.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"].get("fsGroup", user) == user
        assert pod["automountServiceAccountToken"] is False
    for container in containers(pods):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() == {"memory"}


def test_migrations_are_a_step_of_their_own(pods: dict[str, Any], service: Service) -> None:
    compose = yaml.safe_load((service.folder / "compose.yaml").read_text())["services"]["migrate"]
    [app] = pods["Deployment"]["containers"]
    [migrate] = [container for container in containers(pods) if container["name"] == "migrate"]

    assert migrate["command"] == compose["command"]
    for name in ("image", "envFrom", "volumeMounts"):
        assert migrate.get(name) == app.get(name)


def test_sqlite_is_one_replica_on_its_volume(template: Path, tmp_path: Path) -> None:
    found = manifests("sqlite")
    deployment = found["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    [mount] = pod["containers"][0]["volumeMounts"]
    [volume] = pod["volumes"]
    service = render(template, tmp_path / "service", database="sqlite")
    dockerfile = (service / "Dockerfile").read_text()

    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert f"DATABASE_URL=sqlite+aiosqlite:///{mount['mountPath']}/" in dockerfile
    assert mount["name"] == volume["name"]
    assert (
        volume["persistentVolumeClaim"]["claimName"]
        == (found["PersistentVolumeClaim"]["metadata"]["name"])
    )
    assert "PodDisruptionBudget" not in found


def test_whatever_selects_pods_selects_the_deployments(database_name: str) -> None:
    found = manifests(database_name)
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]

    assert found["Service"]["spec"]["selector"] == labels
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    if "PodDisruptionBudget" in found:
        assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        budget = found["PodDisruptionBudget"]["spec"]["maxUnavailable"]
        assert found["Deployment"]["spec"]["replicas"] > budget
        # In an outage of the database no pod is ready, and a node could not be drained.
        assert found["PodDisruptionBudget"]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_an_autoscaler_opens_no_more_connections_than_the_server_has() -> None:
    found = manifests("postgresql")
    autoscaler = yaml.safe_load(block_text(OPERATION, "autoscaler"))["spec"]
    deployment = found["Deployment"]
    settings = (TEMPLATE / "app/settings.py").read_text()
    default = sum(
        int(re.findall(rf"database_{name}: .*?(\d+)$", settings, re.MULTILINE)[0])
        for name in ("pool_size", "max_overflow")
    )
    rows = table("how-to/operate.md", "Processes and connections")
    pods = {
        int(name.split()[0]): dict(zip((15, 10, 5), map(int, cells), strict=True))
        for name, cells in rows.items()
    }

    assert "(max_connections - 3 - 2) / (2 × connections of a process)" in OPERATION
    assert default == 15
    for most, by_process in pods.items():
        for connections, replicas in by_process.items():
            assert replicas == (most - 3 - 2) // (2 * connections), (most, connections)
    assert autoscaler["maxReplicas"] == pods[100][default]
    assert autoscaler["minReplicas"] == deployment["spec"]["replicas"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }


def test_a_pod_reaches_its_database_and_is_reached_at_its_port(database_name: str) -> None:
    found = manifests(database_name)
    policy = found["NetworkPolicy"]["spec"]
    [app] = found["Deployment"]["spec"]["template"]["spec"]["containers"]

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress"] == [{"ports": [{"port": port["name"]} for port in app["ports"]]}]
    reached = [port["port"] for rule in policy.get("egress", []) for port in rule["ports"]]
    assert set(reached) == ({53, 5432} if database_name == "postgresql" else set())
    if database_name == "postgresql":
        assert "sslmode=verify-full" in found["Secret"]["stringData"]["DATABASE_URL"]


def test_composes_containers_have_no_rights_and_a_share_of_the_machine(service: Service) -> None:
    compose = yaml.safe_load((service.folder / "compose.yaml").read_text())

    for name, container in compose["services"].items():
        assert container["read_only"] is True, name
        assert container["cap_drop"] == ["ALL"], name
        assert container["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit"} <= container.keys(), name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & container.keys(), name
        assert all(port.startswith("127.0.0.1:") for port in container.get("ports", [])), name


def test_a_variable_that_kubernetes_makes_of_a_service_would_be_refused(
    pods: dict[str, Any], service: Service
) -> None:
    assert all(pod["enableServiceLinks"] is False for pod in pods.values())
    if service.database == "sqlite":
        return
    variables = {"DATABASE_URL": "postgresql://u@h/n", "DATABASE_PORT": "tcp://10.0.0.1:5432"}
    command = ("uv", "run", "--no-sync", "python", "-c", "import app.main")

    refused = service.run(*command, variables=variables, check=False)

    assert (refused.returncode, "DATABASE_PORT" in refused.stdout) == (1, True)
