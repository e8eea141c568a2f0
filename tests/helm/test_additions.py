"""What an installation adds to the chart's pods: each value reaches the pods that it names, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.chart import Manifest, containers, jobset, named, needs_helm, of, pods, render, rendered

pytestmark = needs_helm

# Where a component's keys stand, and the pod that they reach.
COMPONENTS = {
    "web": "Deployment/crawl2chat-web",
    "historyServer": "Deployment/crawl2chat-history-server",
    "spark.driver": "driver",
    "spark.executor": "executor",
    "training": "jobset",
    "postgresql": "StatefulSet/crawl2chat-postgresql",
}
PLACEMENT: Manifest = {
    "nodeSelector": {"pool": "x"},
    "tolerations": [{"key": "x", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "priorityClassName": "batch",
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
}


def under(key: str, value: Any) -> Manifest:
    """Values with this value at a dotted key; PostgreSQL is on, so that all components are rendered."""
    values: Manifest = {"postgresql": {"enabled": True}}
    place = values
    for part in key.split("."):
        place = place.setdefault(part, {})
    place.update(value)
    return values


@pytest.mark.parametrize("component", [*COMPONENTS, "pods"])
def test_placement_reaches_its_pods(component: str) -> None:
    manifests = render(under(component, PLACEMENT))
    for name, pod in pods(manifests):
        reached = component == "pods" or name == COMPONENTS[component]
        for key, value in PLACEMENT.items():
            assert pod["spec"].get(key) == (value if reached else None), f"{name} {key}"


@pytest.mark.parametrize("component", [*COMPONENTS, "pods"])
def test_labels_and_annotations_reach_their_pods(component: str) -> None:
    added = {"podLabels": {"team": "x"}, "podAnnotations": {"sidecar.istio.io/inject": "false"}}
    for name, pod in pods(render(under(component, added))):
        reached = name == COMPONENTS.get(component) or (component == "pods" and not name.startswith("Pod/"))
        assert ("team" in pod["metadata"]["labels"]) == reached, name
        annotated = pod["metadata"].get("annotations", {}).get("sidecar.istio.io/inject")
        assert annotated == ("false" if reached or component == "pods" else None), name


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name != "postgresql"] + ["pods"])
def test_environment_and_volumes_reach_their_containers(component: str) -> None:
    added = {
        "extraEnv": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "HOME", "value": "/elsewhere"}],
        "extraVolumes": [{"name": "models", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    for name, pod in pods(render(under(component, added))):
        [container] = pod["spec"]["containers"]
        env = [variable["name"] for variable in container["env"]]
        assert len(env) == len(set(env)), f"{name}: a variable is written twice"
        if "postgresql" in name:
            continue
        reached = component == "pods" or name == COMPONENTS[component]
        assert ({"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]) == reached, name
        home = next(variable["value"] for variable in container["env"] if variable["name"] == "HOME")
        assert home == ("/elsewhere" if reached else "/tmp"), name
        if name != "Pod/crawl2chat-check":  # it needs no volume
            assert ("/models" in {mount["mountPath"] for mount in container["volumeMounts"]}) == reached, name
            assert ("models" in {volume["name"] for volume in pod["spec"]["volumes"]}) == reached, name


def test_a_components_own_placement_replaces_that_of_all() -> None:
    found = dict(
        pods(render({"pods": PLACEMENT, "training": {"nodeSelector": {"gpu": "h200"}, "podLabels": {"a": "b"}}}))
    )
    assert found["jobset"]["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert found["executor"]["spec"]["nodeSelector"] == {"pool": "x"}
    assert found["jobset"]["spec"]["tolerations"] == PLACEMENT["tolerations"]


def test_labels_that_select_cannot_be_replaced() -> None:
    label = "app.kubernetes.io/component"
    for name, pod in pods(render({"pods": {"podLabels": {label: "other"}}})):
        assert pod["metadata"]["labels"][label] != "other", name


def test_kueue_queues_the_jobset_and_its_pods_get_devices() -> None:
    job = jobset(rendered("everything"))
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "models"
    assert job["metadata"]["annotations"] == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "example.org/rack"}
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    for amount in ("requests", "limits"):
        assert spec["containers"][0]["resources"][amount].items() >= {"rdma/ib": 1, "nvidia.com/gpu": 8}.items()
    assert (spec["runtimeClassName"], spec["schedulerName"]) == ("nvidia", "volcano")
    assert "kueue.x-k8s.io/queue-name" not in jobset(rendered("default"))["metadata"]["labels"]


def settings(manifests: list[Manifest], file: str) -> dict[str, str]:
    text = named(manifests, "ConfigMap", "crawl2chat-spark")["data"][file]
    lines = [line.split(None, 1) for line in text.splitlines() if line]
    assert len(dict(lines)) == len(lines), "a setting is written twice"
    return dict(lines)


@pytest.mark.parametrize("file", ["spark-defaults.conf", "cluster.conf"])
def test_settings_of_spark_replace_the_charts(file: str) -> None:
    conf = {
        "spark.sql.shuffle.partitions": 12000000,
        "spark.speculation": True,
        "spark.executor.memory": "7g",
        "spark.executor.extraJavaOptions": "-XX:+UseZGC -Dx=y",
    }
    found = settings(render({"spark": {"sparkConf": conf}}), file)
    assert found["spark.sql.shuffle.partitions"] == "12000000" and found["spark.speculation"] == "true"
    assert found["spark.executor.memory"] == "7g"
    assert found["spark.executor.extraJavaOptions"] == "-XX:+UseZGC -Dx=y"
    plain = settings(rendered("default"), file)
    assert plain["spark.sql.shuffle.partitions"] == "16" and plain["spark.executor.memory"] == "2g"


def egress(manifests: list[Manifest], name: str) -> set[int]:
    """Ports that this policy's pods may reach anywhere."""
    rules = named(manifests, "NetworkPolicy", f"crawl2chat-{name}")["spec"]["egress"]
    return {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ({}, {443}),
        ({"artifacts": {"s3": {"endpoint": "http://minio:9000"}}}, {443, 9000}),
        ({"artifacts": {"s3": {"endpoint": "http://minio"}}}, {443, 80}),
        ({"artifacts": {"s3": {"endpoint": "https://s3.example.org"}}}, {443}),
        ({"proxy": {"https": "http://proxy:3128"}}, {443, 3128}),
        ({"networkPolicy": {"egressPorts": []}, "proxy": {"http": "http://proxy"}}, {80}),
    ],
)
def test_policies_let_through_what_the_values_name(values: Manifest, ports: set[int]) -> None:
    manifests = render(values)
    for name in ("web", "history-server", "executor", "training"):
        assert egress(manifests, name) == ports | {53}, name
    assert egress(manifests, "driver") == ports | {53, 6443}


def test_scratch_takes_what_is_spooled() -> None:
    """WARC files that are read would come on top of the limit of ephemeral storage if they lay in /tmp."""
    for name in ("driver", "executor"):
        pod = dict(pods(rendered("default")))[name]
        [container] = containers(pod)
        assert {"name": "TMPDIR", "value": "/scratch/tmp"} in container["env"]
        assert "/scratch" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_volume_of_one_node_is_asked_for_by_name() -> None:
    [claim] = of(render({"volume": {"accessMode": "ReadWriteOnce"}}), "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    [claim] = of(rendered("default"), "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_checks_ask_for_what_is_installed() -> None:
    arguments = {name: containers(pod)[0].get("args") for name, pod in pods(rendered("default"))}
    assert arguments["Pod/crawl2chat-check"] == [
        *("--rights", "--claim", "crawl2chat-data", "ReadWriteMany"),
        *("--jobset", "/etc/crawl2chat/jobset/jobset.yaml", "0.10.0"),
    ]
    assert arguments["Pod/crawl2chat-check-root"][:2] == ["--root", "/data/artifacts"]
    few = {name: containers(pod)[0].get("args") for name, pod in pods(render({"training": {"enabled": False}}))}
    assert few["Pod/crawl2chat-check"] == ["--rights", "--claim", "crawl2chat-data", "ReadWriteMany"]
    volumes = {name: str(pod["spec"]["volumes"]) for name, pod in pods(rendered("default"))}
    assert "crawl2chat-data" not in volumes["Pod/crawl2chat-check"]
