"""The chart, rendered: valid for three Kubernetes versions, and safe in every manifest whatever the values are."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helm.chart import (
    CHART,
    VALUES,
    Manifest,
    call,
    containers,
    jobset,
    named,
    needs_helm,
    of,
    pods,
    render,
    rendered,
    selects,
)

pytestmark = needs_helm
kubernetes_validate = pytest.importorskip("kubernetes_validate")
VERSIONS = (
    "1.31.0",
    "1.34.0",
    "1.37.0",
)  # kubeVersion's lowest, a middle one, kubernetes-validate's newest


def check_safe(manifests: list[Manifest]) -> None:
    """What must hold of every pod."""
    for name, pod in pods(manifests):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0 and security["runAsGroup"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert "hostPath" not in json.dumps(volumes) and not pod["spec"].get("hostNetwork"), name
        for container in containers(pod):
            where = f"{name} {container['name']}"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }, where
            for amounts in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][amounts].keys(), where
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert tag and tag != "latest", where
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= volumes.keys() | claims(manifests), where


def claims(manifests: list[Manifest]) -> set[str]:
    return {
        claim["metadata"]["name"]
        for stateful in of(manifests, "StatefulSet")
        for claim in stateful["spec"]["volumeClaimTemplates"]
    }


def check_reached(manifests: list[Manifest]) -> None:
    """Every Service finds pods, on a port they have; it and every pod of ours has a policy for both directions."""
    all_pods = dict(pods(manifests))
    policies = [policy["spec"] for policy in of(manifests, "NetworkPolicy")]
    for service in of(manifests, "Service"):
        behind = [pod for pod in all_pods.values() if selects(service["spec"]["selector"], pod["metadata"]["labels"])]
        assert len(behind) == 1, service["metadata"]["name"]
        ports = {port["name"]: port["containerPort"] for c in containers(behind[0]) for port in c.get("ports", [])}
        wanted = {ports[port["targetPort"]] for port in service["spec"]["ports"]}
        let_in = {
            port["port"]
            for policy in policies
            if selects(policy["podSelector"]["matchLabels"], behind[0]["metadata"]["labels"])
            for rule in policy["ingress"]
            for port in rule["ports"]
        }
        assert let_in == wanted, service["metadata"]["name"]
    for name, pod in all_pods.items():
        own = [p for p in policies if selects(p["podSelector"]["matchLabels"], pod["metadata"]["labels"])]
        assert len(own) == 1 and set(own[0]["policyTypes"]) == {"Ingress", "Egress"}, name


@pytest.mark.parametrize("name", VALUES)
def test_lint_finds_nothing(name: str) -> None:
    result = call("lint", "--strict", str(CHART), values=VALUES[name])
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_manifests_fit_the_api(name: str, version: str) -> None:
    manifests = rendered(name)
    job = jobset(manifests)["spec"]["replicatedJobs"][0]["template"]
    templates = [pod for name, pod in pods(manifests) if name in ("driver", "executor")]
    whole_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job}
    # An HTTPRoute is none of Kubernetes' own kinds: test_exposed.py has its fields.
    own = [manifest for manifest in manifests if manifest["kind"] != "HTTPRoute"]
    for manifest in [*own, *templates, whole_job]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_that_check_sees_what_is_wrong() -> None:
    wrong = json.loads(json.dumps(named(rendered("default"), "Deployment", "crawl2chat-web")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readonlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_is_safe(name: str) -> None:
    check_safe(rendered(name))


@pytest.mark.parametrize("name", VALUES)
def test_every_service_is_guarded(name: str) -> None:
    check_reached(rendered(name))


@pytest.mark.parametrize("name", VALUES)
def test_labels_and_names_agree(name: str) -> None:
    manifests = rendered(name)
    seen = set()
    for manifest in manifests:
        metadata = manifest["metadata"]
        assert metadata["name"].startswith("crawl2chat-")
        assert (manifest["kind"], metadata["name"]) not in seen
        seen.add((manifest["kind"], metadata["name"]))
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/name"] == labels["app.kubernetes.io/instance"] == "crawl2chat"
        assert labels["helm.sh/chart"] == "crawl2chat-0.1.0" and labels["app.kubernetes.io/managed-by"] == "Helm"
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            spec = manifest["spec"]
            assert selects(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"])
    accounts = {account["metadata"]["name"] for account in of(manifests, "ServiceAccount")}
    for where, pod in pods(manifests):
        assert pod["spec"]["serviceAccountName"] in accounts, where
        token = pod["spec"].get("automountServiceAccountToken", True)
        assert token == (pod["spec"]["serviceAccountName"] == "crawl2chat-launcher"), where
    budgets = {budget["metadata"]["name"] for budget in of(manifests, "PodDisruptionBudget")}
    assert budgets == {service["metadata"]["name"] for service in of(manifests, "Service")}


@pytest.mark.parametrize("name", VALUES)
def test_no_secret_is_written_down(name: str) -> None:
    manifests = rendered(name)
    assert not of(manifests, "Secret")
    for where, pod in pods(manifests):
        for variable in (v for c in containers(pod) for v in c.get("env", [])):
            if re.search("PASSWORD|SECRET|KEY|TOKEN", variable["name"]):
                assert variable.keys() == {"name", "valueFrom"}, f"{where} {variable['name']}"
                assert variable["valueFrom"].keys() == {"secretKeyRef"}


@pytest.mark.parametrize("name", VALUES)
def test_no_hook_can_hold_up_an_installation(name: str) -> None:
    hooks = {manifest["metadata"].get("annotations", {}).get("helm.sh/hook") for manifest in rendered(name)}
    assert hooks == {None, "test"}


words = st.from_regex(r"[a-z]([-a-z0-9]{0,12}[a-z0-9])?", fullmatch=True)
labels = st.dictionaries(words, words, max_size=2)
tolerations = st.lists(st.fixed_dictionaries({"key": words, "operator": st.just("Exists")}), max_size=2)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    training=st.fixed_dictionaries(
        {"nodes": st.integers(1, 64), "gpus": st.integers(0, 16), "ranks": st.integers(1, 8), "nodeSelector": labels}
    ),
    executor=st.fixed_dictionaries(
        {"max": st.integers(1, 5000), "cores": st.integers(1, 64), "nodeSelector": labels, "tolerations": tolerations}
    ),
    web=st.booleans(),
    database=st.booleans(),
    pull=st.lists(words, max_size=2),
    volume=st.one_of(st.just(""), words),
)
def test_whatever_the_values_are(
    training: Manifest, executor: Manifest, web: bool, database: bool, pull: list[str], volume: str
) -> None:
    manifests = render(
        {
            "training": training,
            "spark": {"executor": executor},
            "web": {"enabled": web},
            "postgresql": {"enabled": database},
            "image": {"pullSecrets": pull},
            "volume": {"existingClaim": volume},
        }
    )
    check_safe(manifests)
    check_reached(manifests)
    job = jobset(manifests)["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    assert job["completions"] == job["parallelism"] == training["nodes"]
    assert f"--nproc-per-node={training['gpus'] or training['ranks']}" in container["command"]
    assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == training["gpus"]
    assert job["template"]["spec"].get("nodeSelector", {}) == training["nodeSelector"]
    executors = dict(pods(manifests))["executor"]["spec"]
    assert executors.get("nodeSelector", {}) == executor["nodeSelector"]
    assert executors.get("tolerations", []) == executor["tolerations"]
    assert bool(of(manifests, "PersistentVolumeClaim")) == (volume == "")
