"""What a run goes through that loses its parts: Spark's driver, Airflow's worker, a rank, the scheduler.

It ends well, each stage begun once more than it was killed, and no process stays behind.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from local.airflow import Installation, members
from local.airflow import standalone as started
from local.client import DAG
from local.follow import POINTERS
from pipeline import artifact
from pipeline.stages import STEPS
from pipeline.storage import Storage
from tests.local import runs
from tests.local.runs import ended, in_state, until

KILLED = ("extract", "redact", "sft", "evaluation-sft")


@dataclass(frozen=True)
class Quick(Installation):
    """An Airflow that soon misses a worker."""

    def environment(self) -> dict[str, str]:
        """See `Installation`."""
        name = "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"
        return super().environment() | {name: "15", f"{name}_DETECTION_INTERVAL": "5"}


def processes(installation: Installation, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Of the session of Airflow, those that are wanted, the oldest first."""
    found = []
    for pid in members(int(installation.session_file.read_text())):
        try:
            process = psutil.Process(pid)
            if wanted(process):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.create_time())


def driver(process: psutil.Process) -> bool:
    return "org.apache.spark.deploy.SparkSubmit" in process.cmdline()  # not the launcher that comes first


def worker(process: psutil.Process) -> bool:
    """Of redact: one that has just ended another task bears its name for a while."""
    if not any("LocalExecutor" in part and "idle" not in part for part in process.cmdline()):
        return False
    return any(part.endswith("redact.py") for child in process.children(recursive=True) for part in child.cmdline())


def rank(process: psutil.Process) -> bool:
    command = process.cmdline()
    return "deepspeed.launcher.launch" not in command and any(part.endswith("training/sft.py") for part in command)


def scheduler(process: psutil.Process) -> bool:
    return process.cmdline()[-1:] == ["scheduler"]


def left(root: Path) -> list[list[str]]:
    """Command lines of processes that work on this root."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(root) in process.cmdline():
                found.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def begun(storage: Storage, stage: str) -> int:
    """How often the run began a stage."""
    found = artifact.pointer(storage, "one", stage)
    return len(storage.names(f"{found.work}/attempts")) if found else 0


@pytest.mark.slow
def test_a_run_survives_what_it_loses(tmp_path):
    root = tmp_path / "data"
    installation = Quick(runs.REPOSITORY, str(root), 8296, tmp_path / "airflow")
    form = {"root": str(root), "recipe": str(runs.recipe(tmp_path, "killed", {"input.max_warcs": None}))}

    def kill(airflow, task: str, which: Callable[[psutil.Process], bool]) -> None:
        """Once the stage has begun."""
        in_state(airflow, DAG, "one", task, "running")
        until(lambda: begun(Storage(root), POINTERS[task]), 0.1, 300)
        until(lambda: processes(installation, which), 0.1, 300)[0].send_signal(signal.SIGKILL)

    with started(installation, print) as airflow:
        airflow.trigger(DAG, "one", form)
        kill(airflow, "corpus.extract", driver)
        kill(airflow, "corpus.redact", worker)
        kill(airflow, "model.sft", rank)
        kill(airflow, "model.evaluate_sft", scheduler)
        until(lambda: not processes(installation, scheduler), seconds=30)
    until(lambda: not left(root), seconds=30)  # whoever restarts a scheduler ends what it left
    with started(installation, print) as airflow:
        assert ended(airflow, DAG, "one") == "success"
        tries = {task.name: task.tries for task in airflow.tasks(DAG, "one") if task.state == "success"}
    assert not left(root)
    stages = set(STEPS)
    for name in stages:
        artifact.of_run(Storage(root), "one", name).verify()
    assert {name: begun(Storage(root), name) for name in stages} == {
        name: 2 if name in KILLED else 1 for name in stages
    }, json.dumps(tries)
    assert tries["corpus.extract"] == tries["corpus.redact"] == tries["model.sft"] == 2
