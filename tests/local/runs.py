"""Small runs of a running Airflow for tests: their recipe, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.client import Airflow, Task
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
LONGEST = 1800.0  # seconds: that nothing hangs, not how long it takes


def recipe(folder: Path, name: str, changes: dict[str, Any]) -> Path:
    """The demo's recipe, small and under another name."""
    text = load(REPOSITORY / "recipes/demo.yaml", SMALL | changes).to_yaml().replace("name: demo", f"name: {name}")
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return file


def until(found: Callable[[], Any], pause: float = 1.0, seconds: float = LONGEST) -> Any:
    """What `found` returns once that is true."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(pause)
    return value


def ended(airflow: Airflow, dag: str, run: str) -> str:
    """The state in which a run ended."""

    def state() -> str:
        now = airflow.state(dag, run)
        return now if now in ("success", "failed") else ""

    return str(until(state))


def in_state(airflow: Airflow, dag: str, run: str, task: str, state: str) -> Task:
    """A task of a run, once it is in this state."""

    def look() -> list[Task]:
        found = [one for one in airflow.tasks(dag, run) if (one.name, one.state) == (task, state)]
        assert found or airflow.state(dag, run) not in ("success", "failed"), f"{run} ended, {task} never {state}"
        return found

    return until(look)[0]  # type: ignore[no-any-return]


def answer(airflow: Airflow, dag: str, run: str, task: str, choice: str) -> dict[str, Any]:
    """Answer as a person does on the page Required Actions; what it asked.

    Airflow asks anew where an answer comes before its scheduler saw the task wait (apache/airflow#67287).
    """
    path = f"dags/{dag}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"

    def ask() -> dict[str, Any]:
        in_state(airflow, dag, run, task, "awaiting_input")
        asked: dict[str, Any] = airflow.call("GET", path).json()
        given = airflow.call("PATCH", path, json={"chosen_options": [choice], "params_input": {}})
        assert given.status_code == 200, given.text
        return asked

    def taken() -> str:
        (now,) = (one.state for one in airflow.tasks(dag, run) if one.name == task)
        if now == "awaiting_input":
            ask()
        return now if now in ("success", "failed") else ""

    asked = ask()
    until(taken)
    return asked
