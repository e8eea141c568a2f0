"""A run whose parts are killed: Spark's driver, Airflow's worker, a rank, the scheduler.

It succeeds, each stage is started once more than it was killed, and no process is left.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from local.airflow import Installation
from local.airflow import standalone as started
from local.client import DAG
from pipeline import artifact
from pipeline.stages import BY_TASK, STEPS
from pipeline.storage import Storage
from tests.local import runs
from tests.local.runs import driver, ended, in_state, processes, until

KILLED = ("extract", "redact", "sft")  # their own process is; of the evaluation it is the scheduler


@dataclass(frozen=True)
class Quick(Installation):
    """An Airflow that looks for missing heartbeats often. How long one may be missing stays: a busy machine is slow."""

    def environment(self) -> dict[str, str]:
        """See `Installation`."""
        return super().environment() | {"AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5"}


def worker(process: psutil.Process) -> bool:
    """Whether it is the worker that runs redact: a worker keeps the title of its last task for a while."""
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
    lines = []
    for process in psutil.process_iter():
        try:
            if str(root) in process.cmdline():
                lines.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return lines


def begun(storage: Storage, stage: str) -> int:
    """How often the run started a stage."""
    pointer = artifact.pointer(storage, "one", stage)
    return len(storage.names(f"{pointer.work}/attempts")) if pointer else 0


@pytest.mark.slow
@pytest.mark.gate
def test_a_run_survives_what_it_loses(tmp_path):
    root = tmp_path / "data"
    installation = Quick(runs.REPOSITORY, str(root), 8296, tmp_path / "airflow")
    form = {"root": str(root), "recipe": str(runs.recipe(tmp_path, "killed", {"input.max_warcs": None}))}

    def alive(which: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        return processes(int(installation.session_file.read_text()), which)

    def kill(airflow, task: str, which: Callable[[psutil.Process], bool]) -> None:
        """Kill a process of a task once its stage has started."""
        in_state(airflow, DAG, "one", task, "running")
        until(lambda: begun(Storage(root), BY_TASK[task]), 0.1)
        until(lambda: alive(which), 0.1)[0].send_signal(signal.SIGKILL)

    with started(installation, print) as airflow:
        airflow.trigger(DAG, "one", form)
        kill(airflow, "corpus.extract", driver)
        kill(airflow, "corpus.redact", worker)
        kill(airflow, "model.sft", rank)
        kill(airflow, "model.evaluate_sft", scheduler)
        until(lambda: not alive(scheduler))
    until(lambda: not left(root))  # what the scheduler started ends with Airflow, before the next one starts
    with started(installation, print) as airflow:
        assert ended(airflow, DAG, "one") == "success"
        tries = {task.name: task.tries for task in airflow.tasks(DAG, "one") if task.state == "success"}
    assert not left(root)
    for name in STEPS:
        artifact.of_run(Storage(root), "one", name).verify()
    attempts = {name: begun(Storage(root), name) for name in STEPS}
    # The evaluation may end before its Airflow does, and is then found made.
    assert attempts.pop("evaluation-sft") in (1, 2)
    assert attempts == {name: 2 if name in KILLED else 1 for name in attempts}, json.dumps(tries)
    assert tries["corpus.extract"] == tries["corpus.redact"] == tries["model.sft"] == 2
