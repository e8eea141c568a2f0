"""Names that airflow-values.yaml, our ConfigMaps and the README use of each other: all of them exist."""

from __future__ import annotations

import json
import re

import yaml

from tests.helm.chart import CHART, HELM, Manifest, containers, named, needs_helm, pods, rendered

pytestmark = needs_helm


def test_settings_of_spark_find_their_files() -> None:
    data = named(rendered("default"), "ConfigMap", "crawl2chat-spark")["data"]
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


def test_names_in_the_values_of_airflow_exist() -> None:
    """What airflow-values.yaml refers to is rendered here, or is a secret that the README makes."""
    text = (HELM / "airflow-values.yaml").read_text()
    values = yaml.safe_load(text)
    names = {manifest["metadata"]["name"] for manifest in rendered("small")}
    readme = (CHART / "README.md").read_text()
    secrets = set(re.findall(r"create secret generic (\S+)", readme))
    wanted = set(re.findall(r"\bcrawl2chat-[a-z0-9-]+", text)) - {"crawl2chat-s3"}
    images = {values["defaultAirflowRepository"]}
    assert wanted - images <= names | secrets, wanted - images - names - secrets
    assert values["workers"]["serviceAccount"]["name"] == "crawl2chat-launcher"
    used = {reference["secretKeyRef"]["name"] for reference in references(rendered("small"))}
    assert used <= secrets
    assert values["airflowVersion"] == re.search(r"^apache-airflow==(\S+)$", lock(), re.M)[1]  # type: ignore[index]
    root = {variable["name"]: variable.get("value") for variable in values["env"]}
    assert root["CRAWL2CHAT_ROOT"] == yaml.safe_load((CHART / "values.yaml").read_text())["artifacts"]["root"]
    assert "1.22.0" in text and "--version 1.22.0" in readme


def references(manifests: list[Manifest]) -> list[Manifest]:
    env = [v for _, pod in pods(manifests) for c in containers(pod) for v in c.get("env", [])]
    return [v["valueFrom"] for v in env if "secretKeyRef" in v.get("valueFrom", {})]


def lock() -> str:
    return (HELM.parent / "requirements.lock").read_text()


def test_airflow_gets_limits_and_no_secret() -> None:
    values = yaml.safe_load((HELM / "airflow-values.yaml").read_text())
    for name in ("workers", "apiServer", "scheduler", "dagProcessor", "triggerer", "migrateDatabaseJob"):
        assert values[name]["resources"].keys() == {"requests", "limits"}, name
    assert not re.search(r"(?i)password\s*:|fernetKey:|jwtSecret:|apiSecretKey:", json.dumps(values))
    connections = {
        variable["name"]: json.loads(variable["value"])
        for variable in [*values["env"], *yaml.safe_load(values["extraEnv"])]
        if variable["name"].startswith("AIRFLOW_CONN_")
    }
    assert all(connection.keys() <= {"conn_type", "host", "extra"} for connection in connections.values())
    mounts = {mount["mountPath"]: mount["name"] for mount in values["volumeMounts"]}
    configs = {volume["name"]: volume["configMap"]["name"] for volume in values["volumes"] if "configMap" in volume}
    folder, file = connections["AIRFLOW_CONN_DEEPSPEED_DEFAULT"]["extra"]["template"].rsplit("/", 1)
    assert file in named(rendered("default"), "ConfigMap", configs[mounts[folder]])["data"]
    folder = next(variable["value"] for variable in values["env"] if variable["name"] == "SPARK_CONF_DIR")
    assert "spark-defaults.conf" in named(rendered("default"), "ConfigMap", configs[mounts[folder]])["data"]
