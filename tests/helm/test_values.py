"""Values of the chart: wrong ones are refused by name, and what the chart says of them agrees with them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, S3, VALUES, Manifest, call, needs_helm

pytestmark = needs_helm

OPEN = {"from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]}
REFUSED: list[tuple[Manifest, str]] = [
    ({"wbe": {}}, "Additional property wbe is not allowed"),
    ({"training": {"gpuz": 1}}, "training: Additional property gpuz is not allowed"),
    ({"training": {"nodes": 0}}, "training.nodes: Must be greater than or equal to 1"),
    ({"training": {"nodes": "2"}}, "training.nodes: Invalid type. Expected: integer, given: string"),
    ({"training": {"gpus": 32}}, "training.gpus: Must be less than or equal to 16"),
    ({"training": {"graceSeconds": 5}}, "training.graceSeconds: Must be greater than or equal to 30"),
    ({"training": {"gpuResource": "gpu"}}, "training.gpuResource: Does not match pattern"),
    ({"training": {"sharedMemory": "2 GB"}}, "training.sharedMemory: Does not match pattern"),
    ({"training": {"tolerations": [{"effect": "Never"}]}}, "training.tolerations.0.effect: .* must be one of"),
    ({"training": {"tolerations": {"key": "x"}}}, "training.tolerations: Invalid type. Expected: array"),
    ({"training": {"resources": {"limits": {"cpu": None}}}}, "training.resources.limits: cpu is required"),
    ({"image": {"tag": "latest"}}, "image.tag is `latest`, which names no version"),
    ({"image": {"tag": ""}}, "image.tag is empty: set it to the tag of your images, which `make tag` prints"),
    ({"web": {"framedBy": ""}}, "web.framedBy is empty, so Airflow's tab `Live and report` would stay blank"),
    ({"web": {"framedBy": "airflow.example.org"}}, "web.framedBy: Does not match pattern"),
    ({"web": {"ingress": {"enabled": True, "host": "x.org"}}}, "web is exposed .* networkPolicy.from lets in pods of"),
    ({"web": {"ingress": {"enabled": True}}, "networkPolicy": OPEN}, "web.ingress.host is empty"),
    ({"web": {"gateway": {"enabled": True, "host": "x"}}, "networkPolicy": OPEN}, "web.gateway.parentRefs is empty"),
    ({"web": {"podLabel": {}}}, "web: Additional property podLabel is not allowed"),
    ({"postgresql": {"extraEnv": []}}, "postgresql: Additional property extraEnv is not allowed"),
    ({"training": {"extraEnv": [{"name": "A", "valeu": "b"}]}}, "training.extraEnv.0: Additional property valeu"),
    ({"training": {"extraEnv": [{"name": "A", "value": 1}]}}, "training.extraEnv.0.value: Invalid type"),
    ({"training": {"affinity": {"nodes": {}}}}, "training.affinity: Additional property nodes is not allowed"),
    ({"training": {"queue": "Not A Queue"}}, "training.queue: Does not match pattern"),
    ({"training": {"resources": {"limits": {"rdma/ib": -1}}}}, "training.resources.limits.rdma/ib"),
    ({"spark": {"sparkConf": {"sql.shuffle.partitions": 9}}}, "spark.sparkConf: .*"),
    ({"spark": {"sparkConf": {"spark.x": "a\nspark.y b"}}}, "spark.sparkConf.spark.x"),
    ({"spark": {"sparkConf": {"spark.memory.fraction": 0.5}}}, "spark.sparkConf.spark.memory.fraction"),
    ({"proxy": {"http": "http://user:word@proxy:3128"}}, "proxy.http: Does not match pattern"),
    ({"volume": {"accessMode": "ReadWrite"}}, "volume.accessMode: .* must be one of"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy: .* must be one of"),
    ({"image": {"registry": "https://registry.example.org"}}, "image.registry: Does not match pattern"),
    ({"postgresql": {"image": "postgres"}}, "postgresql.image: Does not match pattern"),
    ({"postgresql": {"image": "postgres:latest"}}, "postgresql.image: Must not validate the schema"),
    ({"postgresql": {"password": "x"}}, "postgresql: Additional property password is not allowed"),
    ({"artifacts": {"root": "relative"}}, "artifacts.root: Does not match pattern"),
    ({"artifacts": {"root": "/elsewhere"}}, "artifacts.root: Does not match pattern"),
    ({"artifacts": {"root": "/data/../etc"}}, "artifacts.root: Does not match pattern"),
    ({"artifacts": {"s3": {"endpoint": "store:8333"}}}, "artifacts.s3.endpoint: Does not match pattern"),
    ({"artifacts": {"s3": {"accessKey": "x"}}}, "artifacts.s3: Additional property accessKey is not allowed"),
    ({"web": {"replicas": 0}}, "web.replicas: Must be greater than or equal to 1"),
    ({"web": {"passwordSecret": {"name": "Not_A_Name"}}}, "web.passwordSecret.name: Does not match pattern"),
    ({"web": {"resources": {"limits": {"gpu": 1}}}}, "web.resources.limits: Additional property gpu is not allowed"),
    ({"spark": {"executor": {"heap": "4Gi"}}}, "spark.executor.heap: Does not match pattern"),
    ({"volume": {"size": "big"}}, "volume.size: Does not match pattern"),
    ({"networkPolicy": {"egressPorts": [70000]}}, "networkPolicy.egressPorts.0: Must be less than or equal to 65535"),
    ({"networkPolicy": {"from": [{"everyone": {}}]}}, "networkPolicy.from.0: Additional property everyone"),
    ({"volume": {"enabled": False}}, "artifacts.root is a folder, and volume.enabled is false: enable the volume"),
    ({"artifacts": S3, "volume": {"enabled": False}}, "historyServer reads Spark's event log on the volume"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[json.dumps(values) for values, _ in REFUSED])
def test_bad_values_are_refused_by_name(values: Manifest, message: str) -> None:
    result = call("template", "crawl2chat", str(CHART), values=values)
    assert result.returncode != 0 and result.stdout == ""
    assert re.search(message, result.stderr), result.stderr


def test_notes_fit_the_values(tmp_path: Path) -> None:
    """Only `helm install` shows them, and it needs a cluster: here they are rendered as a manifest."""
    chart = shutil.copytree(CHART, tmp_path / "chart")
    lines = (chart / "templates" / "NOTES.txt").read_text().splitlines()
    (chart / "templates" / "notes.yaml").write_text("\n".join(["notes: |", *(f"  {line}" for line in lines)]))

    def notes(values: Manifest) -> str:
        result = call("template", "crawl2chat", str(chart), "--show-only", "templates/notes.yaml", values=values)
        assert result.returncode == 0, result.stderr
        return yaml.safe_load(result.stdout)["notes"]

    assert "port-forward service/crawl2chat-web 8090" in notes({}) and "object store" not in notes({})
    assert "ephemeral storage (20Gi)" in notes(VALUES["s3"])
    assert "history-server" not in notes(VALUES["s3"])
    assert "configmap crawl2chat-airflow-values -o go-template='{{index .data \"values.yaml\"}}'" in notes({})
    assert "get pvc crawl2chat-data" in notes({}) and "JobSet 0.10.0 or newer" in notes({})
    assert "opened as https://airflow.example.org." in notes({})
    assert "https://runs.example.org" in notes(VALUES["everything"]) and "port-forward" not in notes(
        VALUES["everything"]
    )
    assert "JobSet 0" not in notes({"training": {"enabled": False}})


MAPS = ("resources", "nodeSelector", "annotations", "labels", "podAnnotations", "podLabels", "affinity", "sparkConf")
MAPS += ("passwordSecret",)


def leaves(values: Manifest, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        whole = not isinstance(value, dict) or key in MAPS
        if whole:
            yield f"{prefix}{key}", value
        else:
            yield from leaves(value, f"{prefix}{key}.")


def test_the_table_of_values_in_the_readme_is_complete() -> None:
    values = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    rows = re.findall(r"^\| `(\S+)` \| (.+?) \| .*\|$", (CHART / "README.md").read_text(), re.M)
    assert [key for key, _ in rows] == list(values)
    for key, default in rows:
        assert default == ("see `values.yaml`" if key.endswith("resources") else f"`{json.dumps(values[key])}`"), key
