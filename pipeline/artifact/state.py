"""What a run is doing: running, between two stages, failed or finished; by its pointers and by what it is to do.

The list of runs, the live page, the terminal and the report all say what this says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from pipeline.artifact.artifact import Frozen
from pipeline.artifact.runs import PLAN, Pointer, pointers_of
from pipeline.progress import last_event
from pipeline.stages import REPORT
from pipeline.storage import Storage


class Plan(Frozen):
    """`runs/<run>/plan.json`: the steps that the run's DAG has, in order, when it began, and its page in Airflow.

    A run whose stages are started by hand has none, nor have runs of older versions.
    """

    steps: tuple[str, ...]
    began: float
    airflow: str = ""


@dataclass(frozen=True)
class RunState:
    """`state`: running; waiting, between two stages; failed; finished. `step`: that runs, comes next, or failed.

    `began` and `last_sign` are Unix seconds; `seconds` is the duration so far, or of the whole run once it has ended.
    """

    state: str
    step: str
    began: float
    seconds: float
    last_sign: float

    @property
    def over(self) -> bool:
        """Whether nothing will follow by itself."""
        return self.state in ("failed", "finished")


def write_plan(storage: Storage, run: str, steps: tuple[str, ...], airflow: str = "") -> Plan:
    """Write what a run is to do. Of a run that is resolved again the beginning stays."""
    before = plan(storage, run)
    made = Plan(steps=steps, began=before.began if before else time.time(), airflow=airflow)
    storage.write(f"runs/{run}/{PLAN}", made.model_dump_json(indent=1).encode())
    return made


def plan(storage: Storage, run: str) -> Plan | None:
    """What a run is to do, or None where nobody wrote it."""
    path = f"runs/{run}/{PLAN}"
    return Plan.model_validate_json(storage.read(path)) if storage.exists(path) else None


def run_exists(storage: Storage, run: str) -> bool:
    """Whether anything of this run was written below the root."""
    return bool(storage.names(f"runs/{run}"))


def recipe_name(storage: Storage, run: str) -> str:
    """The recipe's name from the run's `recipe.yaml`, which is not validated; empty without that file."""
    file = f"runs/{run}/recipe.yaml"
    recipe = yaml.safe_load(storage.read(file)) if storage.exists(file) else None
    return str(recipe.get("name", "")) if isinstance(recipe, dict) else ""


def state_of(storage: Storage, pointers: Mapping[str, Pointer], of: Plan | None) -> RunState:
    """The state of a run with these pointers, and with this plan if it has one."""
    own = {name: to for name, to in pointers.items() if of is None or to.ended >= of.began}  # not those it took over
    signs = {name: last_sign(storage, to) for name, to in own.items()}
    began = of.began if of else min((to.started for to in own.values()), default=0.0)
    last = max(signs.values(), default=began)
    state, step = _current(pointers, of)
    end = last if state in ("failed", "finished") else time.time()
    return RunState(state, step, began, max(0.0, end - began), last)


def last_sign(storage: Storage, to: Pointer) -> float:
    """When a stage last wrote anything that says it lives (Unix seconds)."""
    event = last_event(storage, to.progress_folder) if to.state == "running" else None
    return max(to.ended, event.time if event else 0.0)


def _current(pointers: Mapping[str, Pointer], of: Plan | None) -> tuple[str, str]:
    """State and step. What runs comes before what failed, unless it is the report, which tells of the failure."""
    running = [name for name, to in pointers.items() if to.state == "running"]
    failed = [name for name, to in pointers.items() if to.state == "failed"]
    stages = [name for name in running if name != REPORT.name]
    if stages:
        return "running", stages[-1]
    if failed:
        final = [name for name in failed if not pointers[name].will_retry]
        return ("failed", final[0]) if final else ("waiting", failed[0])
    if running:
        return "running", running[-1]
    return next((("waiting", name) for name in (of.steps if of else ()) if _open(name, pointers)), ("finished", ""))


def _open(name: str, pointers: Mapping[str, Pointer]) -> bool:
    """Whether a step still has to run; so has a report that is older than what it reports on."""
    to = pointers.get(name)
    if to is None:
        return True
    return name == REPORT.name and any(other.ended > to.started for key, other in pointers.items() if key != name)


def run_state(storage: Storage, run: str) -> RunState:
    """The state of a run by its name."""
    return state_of(storage, pointers_of(storage, run), plan(storage, run))
