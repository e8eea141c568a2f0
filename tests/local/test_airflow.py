"""Airflow's settings, and what stops its start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from local import airflow, checks, run
from local.airflow import Installation, check_alone, standalone
from local.processes import stop_session
from pipeline.errors import MachineError

ROOT = Path(__file__).parents[2]


def test_another_airflow_of_this_project_is_refused(tmp_path):
    installation = Installation(tmp_path, "data", 8080)
    installation.state.mkdir(parents=True)
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        installation.session_file.write_text(str(other.pid))
        with pytest.raises(MachineError, match=f"already running \\(session {other.pid}\\)"):
            check_alone(installation)
    finally:
        stop_session(other.pid, 0)
        other.wait()
    check_alone(installation)


def test_another_airflow_is_the_reason_that_is_named_and_not_its_port(tmp_path, monkeypatch):
    installation = Installation(tmp_path, "data", free_port())
    installation.state.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "HOME", tmp_path)
    monkeypatch.setattr(checks, "java", lambda: None)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        sys, "argv", ["run", "--ui", "--root", str(tmp_path / "data"), "--port", str(installation.port)]
    )
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        installation.session_file.write_text(str(other.pid))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", installation.web_port))
            taken.listen()
            with pytest.raises(MachineError, match=f"already running \\(session {other.pid}\\)"):
                run.main()
    finally:
        stop_session(other.pid, 0)
        other.wait()


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
    ended = pytest.raises(MachineError, match=r"Airflow ended while it was starting(.|\n)*the reason")
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


def test_java_keeps_its_defaults_where_the_driver_s_memory_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("SPARK_SUBMIT_OPTS", raising=False)
    monkeypatch.delenv("SPARK_DRIVER_MEMORY", raising=False)
    assert "SPARK_SUBMIT_OPTS" in Installation(tmp_path, "data", 8080).environment()
    monkeypatch.setenv("SPARK_DRIVER_MEMORY", "8g")
    assert "SPARK_SUBMIT_OPTS" not in Installation(tmp_path, "data", 8080).environment()
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-Xss4m")
    assert Installation(tmp_path, "data", 8080).environment()["SPARK_SUBMIT_OPTS"] == "-Xss4m"


def test_spark_submit_is_found_beside_this_python(tmp_path):
    first = Installation(tmp_path, "data", 8080).environment()["PATH"].split(os.pathsep)[0]
    assert os.access(f"{first}/spark-submit", os.X_OK)


@pytest.mark.parametrize(("gpus", "cores", "ranks"), [(0, 1, 1), (0, 3, 2), (1, 3, 1), (2, 1, 2)])
def test_ranks_fit_the_machine(monkeypatch, gpus, cores, ranks):
    listed = "".join(f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: x)\n" for n in range(gpus))
    monkeypatch.setattr(airflow.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=listed))
    monkeypatch.setattr(airflow.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert airflow.ranks() == ranks


def parsing(where: str, folder: Path) -> dict[str, int]:
    """An installation's settings for parsing DAG files."""
    if where == "helm":
        settings = yaml.safe_load((ROOT / "helm/crawl2chat/files/airflow-values.yaml").read_text())["config"][
            "dag_processor"
        ]
    elif where == "compose":
        settings = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["x-airflow"]["environment"]
    else:
        settings = Installation(folder, "data", 8080).environment()
    by_option = {key.lower().removeprefix("airflow__dag_processor__"): value for key, value in settings.items()}
    return {
        key: int(by_option[key])
        for key in ("dag_file_processor_timeout", "min_file_process_interval", "stale_dag_threshold")
    }


@pytest.mark.parametrize("where", ["local", "compose", "helm"])
def test_a_dag_stays_enabled_if_its_file_could_not_be_parsed_once(where, tmp_path):
    seconds = parsing(where, tmp_path)
    between_parses = seconds["min_file_process_interval"] + seconds["dag_file_processor_timeout"]
    assert seconds["stale_dag_threshold"] > 2 * between_parses


def test_of_two_impossible_ports_the_one_that_was_named_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HOME", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "java", lambda: None)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["run", "--ui", "--root", str(tmp_path / "data"), "--port", "99999"])
    with pytest.raises(MachineError, match="99999 is no port"):
        run.main()


def test_below_a_path_with_a_space_nothing_is_split(tmp_path: Path) -> None:
    environment = Installation(tmp_path / "a b", "data", 8080).environment()
    assert " ".join(environment["SPARK_SUBMIT_OPTS"].split()) == "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    assert (Path(environment["SPARK_HOME"]) / "bin/spark-submit").is_file()
    assert "spark.jsa" in Installation(tmp_path / "ab", "data", 8080).environment()["SPARK_SUBMIT_OPTS"]


def test_the_op_is_built_beside_the_corpus_where_several_ranks_will_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow, "ranks", lambda: 1)
    with airflow.prebuilding(tmp_path) as nothing:
        assert nothing is None
    monkeypatch.setattr(airflow, "ranks", lambda: 2)
    with airflow.prebuilding(tmp_path) as child:
        assert child.poll() is None and "training.launch.prebuild" in child.args
    assert child.poll() is not None  # it ends with the run; what it built stays
