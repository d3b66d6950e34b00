"""The manifests, by Kubernetes' schemas and by rules of our own: they are applied nowhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import PREFIX
from tests.deploy.files import DEPLOY, MANIFESTS, PINNED, ROOT, documents, images, settings_of

VERSIONS = ("1.30.0", "1.37.0")
OWN_IMAGES = {f"overlay-{name}:local" for name in images(DEPLOY / "Dockerfile")}
LIST = DEPLOY / "kubernetes" / "kustomization.yaml"

ALL = [(file, one) for file in MANIFESTS if file != LIST for one in documents(file)]
NAMES = [f"{one['kind']}-{one['metadata']['name']}" for _, one in ALL]


def pods() -> Iterator[dict[str, Any]]:
    for _, one in ALL:
        if "template" in one.get("spec", {}):
            yield one["spec"]["template"]


def containers() -> Iterator[dict[str, Any]]:
    for pod in pods():
        yield from pod["spec"]["containers"]


def kind(name: str) -> dict[str, Any]:
    (found,) = (one for _, one in ALL if one["kind"] == name)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("one", [one for _, one in ALL], ids=NAMES)
def test_a_manifest_follows_the_schema(one: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(one, version, strict=True)


def test_the_schema_notices_a_wrong_field() -> None:
    broken = copy.deepcopy(kind("Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolicies"):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


def test_all_manifests_are_listed_and_in_one_namespace() -> None:
    listed = yaml.safe_load(LIST.read_text())["resources"]
    assert sorted(listed) == sorted(file.name for file in MANIFESTS if file != LIST)
    for _, one in ALL:
        if one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == "overlay", one["metadata"]


def test_images_are_our_own_or_pinned() -> None:
    for one in containers():
        assert one["image"] in OWN_IMAGES or PINNED.fullmatch(one["image"]), one["image"]


def test_triton_is_of_one_version() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (image,) = (one["image"] for one in containers() if one["name"] == "triton")
    assert image == compose["services"]["triton"]["image"]


def test_pods_may_do_little() -> None:
    """What the `restricted` level of Pod Security asks for, and a root that is read only."""
    for pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for one in spec["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, one["name"]


def test_containers_say_what_they_need_and_how_they_are() -> None:
    for one in containers():
        assert {"cpu", "memory"} <= set(one["resources"]["requests"]), one["name"]
        assert "memory" in one["resources"]["limits"], one["name"]
    for one in kind("Deployment")["spec"]["template"]["spec"]["containers"]:
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(one), one["name"]
        ports = {port["name"] for port in one["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert one[probe]["httpGet"]["port"] in ports, one["name"]


def test_volumes_that_are_mounted_exist() -> None:
    for pod in pods():
        known = {volume["name"] for volume in pod["spec"]["volumes"]}
        for one in pod["spec"]["containers"]:
            assert {mount["name"] for mount in one["volumeMounts"]} <= known, one["name"]


def test_everything_chooses_the_same_pods() -> None:
    labels = kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert kind("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert kind("Service")["spec"]["selector"] == labels
    assert kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == kind("Deployment")["metadata"]["name"]


def test_the_api_understands_its_environment() -> None:
    (api,) = (one for one in containers() if one["name"] == "api")
    said = {one["name"]: one.get("value", "0123456789abcdef") for one in api["env"]}
    assert settings_of(said).backend == "triton"
    (key,) = (one for one in api["env"] if "valueFrom" in one)
    assert key["name"] == f"{PREFIX}API_KEYS"  # of a secret that no manifest has
    assert not any(one["kind"] == "Secret" for _, one in ALL)


def test_what_the_scaling_looks_at_is_measured() -> None:
    (metric,) = kind("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f'"{name}"' in (ROOT / "service" / "metrics.py").read_text()


def test_manifests_are_read_as_plain_yaml() -> None:
    """Merged keys are YAML 1.1's: not every reader knows them."""
    for file in MANIFESTS:
        assert "<<" not in Path(file).read_text()
