"""Follows a run in the terminal: a live bar a stage, or plain lines where nobody watches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from local.client import DAG, Airflow, Task
from pipeline import artifact
from pipeline.artifact import Pointer
from pipeline.errors import MachineError
from pipeline.progress import Event, last_event
from pipeline.stages import STEPS
from pipeline.storage import Storage

# The step that each task of ours leaves a pointer of, by the task's id; a task that is none of these leaves none.
POINTERS = {step.task: step.name for step in STEPS.values()} | {"corpus.extract_batch": "extract"}
ASKING = "awaiting_input"
RUNNING = ("running", "deferred", "up_for_retry", "restarting", ASKING)
_LOOK_SECONDS = 1.0
_MISSES = 30  # looks without an answer, until Airflow counts as gone
_LOOK = "see .crawl2chat/airflow/standalone.log, and run again: what was made is kept"
_LINE_SECONDS = 10.0  # between two plain lines of a stage
_ASK_SECONDS = 300.0  # between two reminders that a task waits for a person


@dataclass(frozen=True)
class Sight:
    """One look at a task."""

    name: str
    state: str
    tries: int
    seconds: float
    event: Event | None
    pointer: Pointer | None


class View(Protocol):
    """What shows the looks."""

    def show(self, sight: Sight) -> None:
        """Called for every task that has begun, at every look."""


def look(storage: Storage, run: str, task: Task) -> Sight:
    """A task with its stage's pointer and progress; of an earlier attempt's pointer only what this one wrote."""
    name = POINTERS.get(task.name, "")
    pointer = artifact.pointer(storage, run, name) if name else None
    event = last_event(storage, f"{pointer.work}/progress") if pointer and pointer.state == "running" else None
    seconds = (task.ended or time.time()) - task.started if task.started else 0.0
    name = f"{task.name} {task.index + 1}" if task.index >= 0 else task.name
    return Sight(name, task.state, task.tries, seconds, event, pointer)


def follow(airflow: Airflow, storage: Storage, run_id: str, run: str, view: View) -> list[Task]:
    """Show the run until it ends; its tasks then, in the order in which they began."""
    finished: set[tuple[str, int]] = set()
    missed = 0
    while True:
        try:
            state, tasks = airflow.state(DAG, run_id), airflow.tasks(DAG, run_id)
            missed = 0
        except (httpx.TransportError, MachineError) as error:
            missed += 1  # a busy machine, a locked database
            if missed == _MISSES:
                raise MachineError(f"Airflow does not answer any more: {error}", _LOOK) from error
            time.sleep(_LOOK_SECONDS)
            continue
        tasks.sort(key=lambda task: (task.started or math.inf, task.index))
        for task in tasks:
            if (task.name, task.index) in finished or task.state not in ("success", "failed", *RUNNING):
                continue
            if task.state in ("success", "failed"):
                finished.add((task.name, task.index))
            view.show(look(storage, run, task))
        if state in ("success", "failed"):
            return tasks
        time.sleep(_LOOK_SECONDS)


def short(task: str) -> str:
    """Name of a task without its group."""
    return task.rpartition(".")[2]


def outcome(storage: Storage, sight: Sight) -> str:
    """What a finished task made, in a few words."""
    if sight.state == "failed":
        return "failed"
    if sight.pointer is None or sight.pointer.state == "running":  # a batch of a stage
        return "done"
    if sight.pointer.state == "reused":
        return "already made"
    counts = artifact.read(storage, sight.pointer.folder).content.counts
    return f"{counts.in_:,} in, {counts.kept:,} kept" if counts else "made"


def latest(event: Event) -> str:
    """How far a stage is, with the number that says most."""
    shown = f"{event.done:,}/{event.total:,} {event.unit}"
    for name in ("loss", "reward", "sampled_accuracy"):
        value = event.numbers.get(name)
        if isinstance(value, (int, float)):
            shown += f", {name} {value:.3f}"
    return shown


class Lines:
    """A line when a task begins, one now and then, and one when it ends."""

    def __init__(self, storage: Storage, say: Callable[[str], None]) -> None:
        self._storage, self._say = storage, say
        self._said: dict[str, tuple[int, float]] = {}
        self._last = ""

    def show(self, sight: Sight) -> None:
        """See `View`."""
        name, now = short(sight.name), time.monotonic()
        tries, when = self._said.get(sight.name, (0, 0.0))
        if sight.state in ("success", "failed"):
            self._say(f"{name}: {outcome(self._storage, sight)} ({sight.seconds:.1f} s)")
        elif sight.tries > tries and sight.state == "running":
            self._say(f"{name}: started" + (f", try {sight.tries}" if sight.tries > 1 else ""))
            self._said[sight.name] = (sight.tries, now)
        elif sight.state == ASKING and now - when > _ASK_SECONDS:
            self._say(f"{name}: waits for your answer in Airflow, on the page Required Actions")
            self._said[sight.name] = (tries, now)
        elif sight.event and now - when > _LINE_SECONDS:
            line = f"{name}: {latest(sight.event)}"
            if line != self._last:
                self._say(line)
            self._last, self._said[sight.name] = line, (tries, now)


class Bars:
    """A bar a stage."""

    def __init__(self, storage: Storage, console: Console, stack: ExitStack) -> None:
        self._storage = storage
        self._progress = stack.enter_context(
            Progress(
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=30),
                TimeElapsedColumn(),
                TextColumn("{task.fields[told]}"),
                console=console,
            )
        )
        self._bars: dict[str, TaskID] = {}

    def show(self, sight: Sight) -> None:
        """See `View`."""
        if sight.name not in self._bars:
            self._bars[sight.name] = self._progress.add_task(short(sight.name), total=None, told="")
        bar = self._bars[sight.name]
        if sight.state in ("success", "failed"):
            self._progress.update(bar, total=1, completed=1, told=outcome(self._storage, sight))
            self._progress.stop_task(bar)
        elif sight.event and sight.event.total:
            self._progress.update(bar, total=sight.event.total, completed=sight.event.done, told=latest(sight.event))
        elif sight.state == ASKING:
            self._progress.update(bar, told="waits for your answer in Airflow: Required Actions")
        elif sight.state == "up_for_retry":
            self._progress.update(bar, told="failed, waits to be tried again")
