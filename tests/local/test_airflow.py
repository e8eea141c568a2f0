"""Airflow's settings, and that nothing is left of a session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from local import airflow
from local.airflow import Installation, check_alone, members, standalone, stop_session
from pipeline.errors import MachineError

ROOT = Path(__file__).parents[2]
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        os.setpgid(0, 0)
        break
os.write(1, b"ready\\n")
time.sleep(600)
"""


@pytest.fixture
def session():
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(3):
        assert process.stdout.readline() == "ready\n"
    yield process
    stop_session(process.pid, 0)
    process.wait()
    process.stdout.close()


def test_a_stopped_session_leaves_no_process_even_of_those_that_ignore_it(session):
    assert len(members(session.pid)) == 3
    stop_session(session.pid, seconds=0.5)
    assert members(session.pid) == []


def test_a_session_that_obeys_is_not_waited_for():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    began = time.monotonic()
    stop_session(process.pid)
    process.wait()
    assert time.monotonic() - began < 5


def test_another_airflow_of_this_project_is_refused(tmp_path, session):
    installation = Installation(tmp_path, "data", 8080)
    installation.state.mkdir(parents=True)
    installation.session_file.write_text(str(session.pid))
    with pytest.raises(MachineError, match=f"runs already \\(session {session.pid}\\)"):
        check_alone(installation)
    stop_session(session.pid, 0)
    check_alone(installation)


def test_a_taken_port_stops_it_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        installation = Installation(tmp_path, "data", taken.getsockname()[1])
        with pytest.raises(MachineError, match="cannot be used"), standalone(installation, print):
            pass
    assert not installation.state.exists()


def test_one_that_ends_at_once_is_reported_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    program = tmp_path / "bin" / "airflow"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho the reason\nexit 3\n")
    program.chmod(0o755)
    installation = Installation(tmp_path, "data", free_port())
    ended = pytest.raises(MachineError, match=r"Airflow ended while it started(.|\n)*the reason")
    with ended, standalone(installation, print):
        pass
    assert not installation.session_file.exists()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_tasks_ask_the_port_that_airflow_listens_on(tmp_path):
    environment = Installation(tmp_path, "data", 8081).environment()
    assert environment["AIRFLOW__API__PORT"] == "8081"
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:8081/execution/"
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"


def test_settings_of_another_airflow_do_not_leak_in_and_connections_do(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_HOME", "/elsewhere")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://here:7077")
    environment = Installation(tmp_path, "data", 8080).environment()
    assert "AIRFLOW__CORE__EXECUTOR" not in environment
    assert environment["AIRFLOW_HOME"] == f"{tmp_path}/.crawl2chat/airflow"
    assert environment["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark://here:7077"


def test_spark_submit_is_found_beside_this_python(tmp_path):
    first = Installation(tmp_path, "data", 8080).environment()["PATH"].split(os.pathsep)[0]
    assert os.access(f"{first}/spark-submit", os.X_OK)


@pytest.mark.parametrize(("gpus", "cores", "ranks"), [(0, 1, 1), (0, 3, 2), (1, 3, 1), (2, 1, 2)])
def test_ranks_fit_the_machine(monkeypatch, gpus, cores, ranks):
    told = "".join(f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: x)\n" for n in range(gpus))
    monkeypatch.setattr(airflow.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=told))
    monkeypatch.setattr(airflow.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert airflow.ranks() == ranks


def settings(where: str, folder: Path) -> dict[str, int]:
    """What an installation says of the reading of DAG files."""
    if where == "helm":
        told = yaml.safe_load((ROOT / "helm/airflow-values.yaml").read_text())["config"]["dag_processor"]
    elif where == "compose":
        told = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["x-airflow"]["environment"]
    else:
        told = Installation(folder, "data", 8080).environment()
    found = {key.lower().removeprefix("airflow__dag_processor__"): value for key, value in told.items()}
    return {
        key: int(found[key])
        for key in ("dag_file_processor_timeout", "min_file_process_interval", "stale_dag_threshold")
    }


@pytest.mark.parametrize("where", ["local", "compose", "helm"])
def test_a_dag_stays_in_use_where_its_file_could_not_be_read_once(where, tmp_path):
    told = settings(where, tmp_path)
    assert told["stale_dag_threshold"] > 2 * (told["min_file_process_interval"] + told["dag_file_processor_timeout"])
