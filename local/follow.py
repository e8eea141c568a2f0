"""Follows a run in the terminal: a live bar per stage, or plain lines where the output is no terminal."""

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
from pipeline.errors import CrawlToChatError, MachineError
from pipeline.numbers import progress_numbers
from pipeline.progress import Event, last_event
from pipeline.stages import BY_TASK
from pipeline.storage import Storage
from pipeline.terminal import one_line

AWAITING_INPUT = "awaiting_input"  # Airflow's state of a task that needs a person's approval
ENDED = ("success", "failed")
BEGUN = ("running", "deferred", "up_for_retry", "restarting", AWAITING_INPUT, *ENDED)
_POLL_SECONDS = 1.0
_MAX_FAILED_POLLS = 30  # in a row; then Airflow or the storage counts as gone
_REMEDY = "see .crawl2chat/airflow/standalone.log, and run again: finished stages are kept"
_LINE_SECONDS = 10.0  # between two plain lines of a stage
_REMINDER_SECONDS = 300.0  # between two lines that a task needs an approval


@dataclass(frozen=True)
class TaskStatus:
    """A task at one moment. `seconds`: since it started, or its duration; `event`: its stage's last progress."""

    name: str
    state: str
    tries: int
    seconds: float
    event: Event | None
    pointer: Pointer | None


class View(Protocol):
    """Shows the status of tasks."""

    def show(self, status: TaskStatus) -> None:
        """Called at every poll for every task that has begun, until it has been shown as ended."""


def task_status(storage: Storage, run: str, task: Task) -> TaskStatus:
    """The status of a task now; progress only while its stage runs, since a pointer may be of an earlier attempt."""
    stage = BY_TASK.get(task.name, task.name)  # of others, such as `resolve`, only a failure is recorded
    pointer = artifact.pointer(storage, run, stage) if stage else None
    event = last_event(storage, pointer.progress_folder) if pointer and pointer.state == "running" else None
    seconds = (task.ended or time.time()) - task.started if task.started else 0.0
    name = f"{task.name} {task.index + 1}" if task.index >= 0 else task.name
    return TaskStatus(name, task.state, task.tries, seconds, event, pointer)


def follow(airflow: Airflow, storage: Storage, run_id: str, run: str, view: View) -> tuple[str, list[Task]]:
    """Show the run until it ends; returns its state, and its tasks in the order in which they started.

    Raises `MachineError` if Airflow or the storage stops answering.
    """
    ended: set[tuple[str, int]] = set()
    failed_polls = 0
    while True:
        try:
            state, tasks = airflow.state(DAG, run_id), airflow.tasks(DAG, run_id)
            tasks.sort(key=lambda task: (task.started or math.inf, task.index))
            for task in tasks:
                if (task.name, task.index) in ended or task.state not in BEGUN:
                    continue
                view.show(task_status(storage, run, task))
                if task.state in ENDED:
                    ended.add((task.name, task.index))
        except (httpx.TransportError, CrawlToChatError, OSError) as error:
            # A busy machine, a locked database, a store that does not answer: the run itself goes on.
            failed_polls += 1
            if failed_polls == _MAX_FAILED_POLLS:
                raise MachineError(f"the run cannot be followed any more: {error}", _REMEDY) from error
        else:
            failed_polls = 0
            if state in ENDED:
                return state, tasks
        time.sleep(_POLL_SECONDS)


def short_name(task: str) -> str:
    """Name of a task without its group."""
    return task.rpartition(".")[2]


def outcome(storage: Storage, status: TaskStatus) -> str:
    """What a task that ended made, in a few words."""
    if status.state == "failed":
        return "failed" + reason(status)
    if status.pointer is None or not status.pointer.finished:  # no stage, or a batch of one
        return "done"
    if status.pointer.state == "reused":
        return "already made"
    if not artifact.is_published(storage, status.pointer.folder):  # another run makes it again with --force
        return "made; its artifact is missing at the moment"
    counts = artifact.read(storage, status.pointer.folder).content.counts
    return f"{counts.in_:,} in, {counts.kept:,} kept" if counts else "made"


def reason(status: TaskStatus) -> str:
    """Why a stage failed, where its pointer says so: the first line, after a colon."""
    pointer = status.pointer
    error = pointer.error.splitlines() if pointer and pointer.state == "failed" else []
    return f": {one_line(error[0])}" if error else ""


def progress(event: Event) -> str:
    """Units done, and the event's numbers that are in `PROGRESS`."""
    text = f"{event.done:,}/{event.total:,} {event.unit}"
    for name, value in progress_numbers(event.numbers).items():
        text += f", {name} {value:.3f}" if abs(value) < 1000 else f", {name} {value:,.0f}"
    return text


class Lines:
    """A line when a task begins, one every few seconds, and one when it ends."""

    def __init__(self, storage: Storage, print_line: Callable[[str], None]) -> None:
        self._storage, self._print = storage, print_line
        self._printed: dict[str, tuple[int, float]] = {}  # by task: the attempt, and the time of its last line
        self._reminded: dict[str, float] = {}  # by task: the time of the last line that it needs an approval
        self._failed_tries: dict[str, int] = {}  # by task: the attempt whose failure was printed
        self._last_line = ""

    def show(self, status: TaskStatus) -> None:
        """See `View`."""
        name, now = short_name(status.name), time.monotonic()
        tries, printed = self._printed.get(status.name, (0, 0.0))
        if status.state in ENDED:
            self._print(f"{name}: {outcome(self._storage, status)} ({status.seconds:.1f} s)")
        elif status.tries > tries and status.state == "running":
            self._print(f"{name}: started" + (f", try {status.tries}" if status.tries > 1 else ""))
            self._printed[status.name] = (status.tries, now)
        elif status.state == "up_for_retry":
            if status.tries > self._failed_tries.get(status.name, 0):
                self._print(f"{name}: failed, will be retried{reason(status)}")
                self._failed_tries[status.name] = status.tries
        elif status.state == AWAITING_INPUT:
            if now - self._reminded.get(status.name, -math.inf) > _REMINDER_SECONDS:
                self._print(f"{name}: needs your approval in Airflow, on the page Required Actions")
                self._reminded[status.name] = now
        elif status.event and now - printed > _LINE_SECONDS:
            line = f"{name}: {progress(status.event)}"
            if line != self._last_line:
                self._print(line)
            self._last_line, self._printed[status.name] = line, (tries, now)


class Bars:
    """A bar per task."""

    def __init__(self, storage: Storage, console: Console, stack: ExitStack) -> None:
        self._storage = storage
        self._progress = stack.enter_context(
            Progress(
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=30),
                TimeElapsedColumn(),
                TextColumn("{task.fields[details]}"),
                console=console,
            )
        )
        self._bars: dict[str, TaskID] = {}

    def show(self, status: TaskStatus) -> None:
        """See `View`."""
        if status.name not in self._bars:
            self._bars[status.name] = self._progress.add_task(short_name(status.name), total=None, details="")
        bar, event = self._bars[status.name], status.event
        if status.state in ENDED:
            self._progress.update(bar, total=1, completed=1, details=outcome(self._storage, status))
            self._progress.stop_task(bar)
        elif event and event.total:
            self._progress.update(bar, total=event.total, completed=event.done, details=progress(event))
        elif status.state == AWAITING_INPUT:
            self._progress.update(bar, details="needs your approval in Airflow: Required Actions")
        elif status.state == "up_for_retry":
            self._progress.update(bar, details=f"failed, will be retried{reason(status)}")
