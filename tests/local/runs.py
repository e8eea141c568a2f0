"""For tests with a running Airflow: a small recipe, and waiting for events of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from local.client import Airflow, Task
from local.processes import members
from pipeline.recipe import load

REPOSITORY = Path(__file__).parents[2]
SMALL = {
    "input.max_warcs": 2,
    "model.layers": 2,
    "model.width": 64,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.mlp_width": 128,
    "pretrain.steps": 4,
    "pretrain.evaluate_every": 2,
    "sft.conversations": [],
    "sft.tasks": {"arithmetic": 640},
    "sft.evaluate_every": 10,
    "rl.steps": 1,
    "rl.prompts": 4,
    "evaluation.tasks": {"arithmetic": 4},
    "evaluation.samples": 1,
    "evaluation.max_new_tokens": 16,
}
LONGEST = 1800.0  # seconds after which a test counts as hanging; a busy machine may take long


def recipe(folder: Path, name: str, changes: dict[str, Any]) -> Path:
    """The demo's recipe, small and under another name."""
    text = load(REPOSITORY / "recipes/demo.yaml", SMALL | changes).to_yaml().replace("name: demo", f"name: {name}")
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return file


def until(condition: Callable[[], Any], pause: float = 1.0) -> Any:
    """The first true value that `condition` returns; called again after each `pause` (seconds)."""
    end = time.monotonic() + LONGEST
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {LONGEST:.0f} s"
        time.sleep(pause)
    return value


def processes(session: int, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The processes of a kernel session that are `wanted`, the oldest first."""
    matching = []
    for pid in members(session):
        try:
            process = psutil.Process(pid)
            if wanted(process):
                matching.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(matching, key=lambda process: process.create_time())


def driver(process: psutil.Process) -> bool:
    """Whether it is the JVM of a Spark driver; the launcher that precedes it has another class."""
    return "org.apache.spark.deploy.SparkSubmit" in process.cmdline()


def ended(airflow: Airflow, dag: str, run: str) -> str:
    """The state in which a run ended."""

    def state() -> str:
        now = airflow.state(dag, run)
        return now if now in ("success", "failed") else ""

    return str(until(state))


def in_state(airflow: Airflow, dag: str, run: str, task: str, state: str) -> Task:
    """A task of a run, once it is in this state."""

    def matching() -> list[Task]:
        tasks = [other for other in airflow.tasks(dag, run) if (other.name, other.state) == (task, state)]
        assert tasks or airflow.state(dag, run) not in ("success", "failed"), f"{run} ended, {task} was never {state}"
        return tasks

    return until(matching)[0]  # type: ignore[no-any-return]


def answer(airflow: Airflow, dag: str, run: str, task: str, choice: str) -> dict[str, Any]:
    """Approve or reject as a person does on the page Required Actions; returns the request.

    Airflow asks again if the answer comes before its scheduler has seen the task wait (apache/airflow#67287).
    """
    path = f"dags/{dag}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"

    def respond() -> dict[str, Any]:
        in_state(airflow, dag, run, task, "awaiting_input")
        request: dict[str, Any] = airflow.call("GET", path).json()
        response = airflow.call("PATCH", path, json={"chosen_options": [choice], "params_input": {}})
        assert response.status_code == 200, response.text
        return request

    def ended() -> str:
        (now,) = (other.state for other in airflow.tasks(dag, run) if other.name == task)
        if now == "awaiting_input":
            respond()
        return now if now in ("success", "failed") else ""

    request = respond()
    until(ended)
    return request
