"""The values of Airflow's chart that ours writes: their names exist, and they follow from ours alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, HELM, VALUES, Manifest, airflow_values, containers, named, needs_helm, pods, render
from tests.helm.chart import rendered as of_values

pytestmark = needs_helm
README = (CHART / "README.md").read_text()


def variables(values: Manifest) -> dict[str, str]:
    """The environment that has fixed values."""
    return {variable["name"]: variable["value"] for variable in values["env"]}


def test_settings_of_spark_find_their_files() -> None:
    data = named(of_values("default"), "ConfigMap", "crawl2chat-spark")["data"]
    for name in ("spark-defaults.conf", "cluster.conf"):
        lines = [line.split(None, 1) for line in data[name].splitlines() if line and not line.startswith("#")]
        settings = dict(lines)
        assert len(settings) == len(lines), "a setting is written twice"
        for role in ("driver", "executor"):
            folder, file = settings[f"spark.kubernetes.{role}.podTemplateFile"].rsplit("/", 1)
            assert folder == "/etc/crawl2chat/spark" and file in data
            container = settings[f"spark.kubernetes.{role}.podTemplateContainerName"]
            assert yaml.safe_load(data[file])["spec"]["containers"][0]["name"] == container
        # In cluster mode Spark makes the driver's pod and service, and refuses both settings.
        client = {"spark.kubernetes.driver.pod.name", "spark.driver.host"} & settings.keys()
        assert bool(client) == (name == "spark-defaults.conf")


@pytest.mark.parametrize("release", ["crawl2chat", "other"])
def test_names_that_airflow_refers_to_exist(release: str) -> None:
    """They are rendered here, whatever the release's name is, or are secrets that the README makes."""
    manifests = render(VALUES["small"], release)
    values = airflow_values(manifests, release)
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for volume in values["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    workers = values["workers"]["kubernetes"]
    assert ("ServiceAccount", workers["serviceAccount"]["name"]) in names
    secrets = set(re.findall(r"create secret generic (\S+)", README))
    wanted = {values["data"]["metadataSecretName"], values["jwtSecretName"], values["fernetKeySecretName"]}
    assert wanted <= secrets
    assert {reference["secretKeyRef"]["name"] for reference in references(of_values("small"))} <= secrets
    assert values["airflowVersion"] == re.search(r"^apache-airflow==(\S+)$", lock(), re.M)[1]  # type: ignore[index]
    for text in (
        README,
        (CHART / "templates/NOTES.txt").read_text(),
        (CHART / "files/airflow-values.yaml").read_text(),
    ):
        assert re.search(r"(--version|version) 1\.22\.0", text)


def references(manifests: list[Manifest]) -> list[Manifest]:
    env = [v for _, pod in pods(manifests) for c in containers(pod) for v in c.get("env", [])]
    return [v["valueFrom"] for v in env if "secretKeyRef" in v.get("valueFrom", {})]


def lock() -> str:
    return (HELM.parent / "requirements.lock").read_text()


@pytest.mark.parametrize("name", VALUES)
def test_both_releases_have_one_image_and_one_root(name: str) -> None:
    """Another tag reaches every pod of both: executors never run other code than their driver."""
    manifests = of_values(name)
    values = airflow_values(manifests)
    ours = {c["image"] for _, pod in pods(manifests) for c in containers(pod) if "crawl2chat-" in c["image"]}
    prefixes = {image.rpartition("crawl2chat-")[0] for image in ours}
    assert {image.rpartition(":")[2] for image in ours} == {values["defaultAirflowTag"]}
    assert prefixes == {values["defaultAirflowRepository"].removesuffix("crawl2chat-airflow")}
    settings = named(manifests, "ConfigMap", "crawl2chat-spark")["data"]["spark-defaults.conf"]
    assert f"crawl2chat-spark:{values['defaultAirflowTag']}\n" in settings
    root = variables(values)["CRAWL2CHAT_ROOT"]
    assert root in json.dumps([pod for _, pod in pods(manifests)])
    keys = {secret["envName"]: secret["secretName"] for secret in values.get("secret", [])}
    assert ("AWS_ACCESS_KEY_ID" in keys) == root.startswith("s3://")
    assert ("AWS_ENDPOINT_URL" in variables(values)) == root.startswith("s3://")


def test_another_tag_changes_what_has_to_roll_out() -> None:
    """Pods of the images start anew; PostgreSQL, whose image is another, does not."""
    old, new = (render({**VALUES["small"], "image": {"tag": tag}}) for tag in ("0.1.0-abc", "0.1.0-def"))
    before, after = (
        {
            f"{m['kind']}/{m['metadata']['name']}": m["spec"]["template"]
            for m in manifests
            if m["kind"] in ("Deployment", "StatefulSet")
        }
        for manifests in (old, new)
    )
    changed = {name for name, template in before.items() if after[name] != template}
    assert changed == {"Deployment/crawl2chat-web", "Deployment/crawl2chat-history-server"}
    assert airflow_values(new)["defaultAirflowTag"] == "0.1.0-def"


def test_airflow_gets_limits_and_no_secret() -> None:
    manifests = of_values("default")
    values = airflow_values(manifests)
    for name in ("apiServer", "scheduler", "dagProcessor", "triggerer", "migrateDatabaseJob"):
        assert values[name]["resources"].keys() == {"requests", "limits"}, name
    assert values["workers"].keys() == {"kubernetes"}, "keys of workers itself are deprecated since 1.20"
    assert values["workers"]["kubernetes"]["resources"].keys() == {"requests", "limits"}
    assert not re.search(r"(?i)password\s*:|fernetKey:|jwtSecret:|apiSecretKey:", json.dumps(values))
    connections = {
        name: json.loads(value) for name, value in variables(values).items() if name.startswith("AIRFLOW_CONN_")
    }
    assert all(connection.keys() <= {"conn_type", "host", "extra"} for connection in connections.values())
    mounts = {mount["mountPath"]: mount["name"] for mount in values["volumeMounts"]}
    configs = {volume["name"]: volume["configMap"]["name"] for volume in values["volumes"] if "configMap" in volume}
    extra = connections["AIRFLOW_CONN_DEEPSPEED_DEFAULT"]["extra"]
    assert extra["namespace"] == "place"
    folder, file = extra["template"].rsplit("/", 1)
    assert file in named(manifests, "ConfigMap", configs[mounts[folder]])["data"]
    folder = variables(values)["SPARK_CONF_DIR"]
    assert "spark-defaults.conf" in named(manifests, "ConfigMap", configs[mounts[folder]])["data"]


def test_tasks_ask_for_what_they_need() -> None:
    """`dags/parts/pods.py` reads the sizes of those that are no Spark drivers."""
    values = airflow_values(of_values("default"))
    sizes = json.loads(variables(values)["CRAWL2CHAT_PODS"])
    assert sizes.keys() == {"small", "training"}
    assert sizes["training"]["requests"]["memory"] == "512Mi"
    assert values["workers"]["kubernetes"]["resources"]["requests"]["memory"] == "6Gi"
    for size in sizes.values():
        assert all(size[amount].keys() == {"cpu", "memory", "ephemeral-storage"} for amount in ("requests", "limits"))


def test_without_jobsets_stages_train_in_the_pods_of_their_tasks() -> None:
    manifests = render({"training": {"enabled": False, "ranks": 4}})
    assert not [m for m in manifests if m["metadata"]["name"] in ("crawl2chat-jobset", "crawl2chat-training")]
    values = airflow_values(manifests)
    assert json.loads(variables(values)["AIRFLOW_CONN_DEEPSPEED_DEFAULT"])["extra"] == {"ranks": 4}
    sizes = json.loads(variables(values)["CRAWL2CHAT_PODS"])
    assert sizes["training"] == yaml.safe_load((CHART / "values.yaml").read_text())["training"]["resources"]


def test_addresses_are_those_of_a_browser() -> None:
    plain, everything = airflow_values(of_values("default")), airflow_values(of_values("everything"))
    assert variables(plain)["CRAWL2CHAT_WEB_URL"] == "http://localhost:8090"
    assert variables(everything)["CRAWL2CHAT_WEB_URL"] == "https://runs.example.org"
    assert variables(everything)["CRAWL2CHAT_SPARK_UI_URL"] == "https://spark.example.org"
    assert everything["config"]["api"]["base_url"] == "https://airflow.example.org"
    # Tasks report to Airflow inside the cluster, wherever browsers find it.
    assert everything["config"]["core"]["execution_api_server_url"] == "http://flow-api-server:8080/execution/"
    assert everything["config"]["core"]["dags_folder"] == "/opt/crawl2chat/dags"
    two = airflow_values(render({"web": {"framedBy": "https://a.example.org http://localhost:8080"}}))
    assert two["config"]["api"]["base_url"] == "https://a.example.org"
    given = airflow_values(render({"web": {"url": "https://runs.example.net"}}))
    assert variables(given)["CRAWL2CHAT_WEB_URL"] == "https://runs.example.net"


def test_what_all_pods_have_airflows_have_too() -> None:
    values = airflow_values(of_values("everything"))
    assert variables(values)["HF_HUB_OFFLINE"] == "1" and values["labels"] == {"team": "corpus"}
    assert values["airflowPodAnnotations"] == {"sidecar.istio.io/inject": "false"}
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in values["volumeMounts"]
    assert variables(values)["https_proxy"] == "http://proxy.example.org:3128"
    # Tasks reach Airflow's own server by its short name, and Kubernetes by its address.
    assert {"flow-api-server", "$(KUBERNETES_SERVICE_HOST)"} <= set(variables(values)["no_proxy"].split(","))
    referring = render(
        {"pods": {"extraEnv": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}}
    )
    extra = yaml.safe_load(airflow_values(referring)["extraEnv"])
    assert [variable["name"] for variable in extra] == ["POD_IP", "TOKEN"]


def test_alerts_and_metrics_are_settings_of_airflow() -> None:
    from dags.parts.alerts import CONNECTION

    values: dict[str, Any] = airflow_values(of_values("everything"))
    wanted = {"envName": f"AIRFLOW_CONN_{CONNECTION.upper()}", "secretName": "alerts", "secretKey": "connection"}
    assert wanted in values["secret"]
    assert values["config"]["metrics"] == {"otel_on": "True"}
    assert variables(values)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.monitoring:4318"
    plain = airflow_values(of_values("default"))
    assert "secret" not in plain and "metrics" not in plain["config"]


@pytest.mark.parametrize("name", VALUES)
def test_settings_of_airflow_exist(name: str) -> None:
    """Airflow silently ignores a key that it does not have."""
    core = pytest.importorskip("airflow")
    known = yaml.safe_load((Path(core.__file__).parent / "config_templates" / "config.yml").read_text())
    for section, options in airflow_values(of_values(name))["config"].items():
        for option in options:
            assert option in known[section]["options"], f"{section}.{option}"
