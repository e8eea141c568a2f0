"""Following a run: how it ends, what it survives, and when it asks for an approval."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from local import follow, run
from local.client import Airflow, Task
from pipeline import artifact
from pipeline.artifact import Building, Counts, Identity, Stage
from pipeline.errors import MachineError, StorageError
from pipeline.storage import Storage


class Fake:
    """An Airflow whose run is in one state, with these tasks."""

    def __init__(self, state: str, tasks: list[Task]) -> None:
        self._state, self._tasks, self.failed = state, tasks, False

    def state(self, *_: str) -> str:
        return self._state

    def tasks(self, *_: str) -> list[Task]:
        return list(self._tasks)

    def fail(self, *_: str) -> None:
        self.failed = True

    def fail_active(self, *_: str) -> None: ...

    def trigger(self, *_: Any) -> None: ...


def task(name: str, state: str) -> Task:
    return Task(name, -1, state, 1, 100.0, None)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(follow, "_POLL_SECONDS", 0.0)
    return Storage(tmp_path)


def test_a_run_that_was_marked_failed_is_no_success(storage: Storage) -> None:
    airflow = cast(Airflow, Fake("failed", [task("corpus.extract", "skipped")]))
    arguments = argparse.Namespace(
        recipe="recipes/demo.yaml", warcs=None, crawl=None, max_warcs=None, force=False, set=[]
    )
    with pytest.raises(run.TaskFailed, match="ended as failed, though none of its tasks failed"):
        run.run(airflow, arguments, "demo-one", storage, Console())


class Failing:
    """A view that raises at its first calls."""

    def __init__(self, errors: int) -> None:
        self.left, self.shown = errors, list[str]()

    def show(self, status: follow.TaskStatus) -> None:
        if self.left:
            self.left -= 1
            raise StorageError("the store does not answer", "wait")
        self.shown.append(status.state)


def test_a_store_that_does_not_answer_for_a_moment_costs_the_run_nothing(storage: Storage) -> None:
    airflow = cast(Airflow, Fake("success", [task("corpus.extract", "success")]))
    view = Failing(3)
    assert follow.follow(airflow, storage, "one", "one", view)[0] == "success"
    assert view.shown == ["success"]
    with pytest.raises(MachineError, match="cannot be followed any more: the store does not answer"):
        follow.follow(airflow, storage, "one", "one", Failing(10**6))


def test_an_artifact_that_another_run_makes_again_ends_no_run(storage: Storage) -> None:
    building = artifact.start(storage, "one", Identity(Stage("extract", 1), {}, 1, []))
    assert isinstance(building, Building)
    made = building.publish([], Counts(in_=2, kept=2, dropped={}))
    storage.remove(f"{made.folder}/{artifact.MANIFEST}")
    status = follow.task_status(storage, "one", task("corpus.extract", "success"))
    assert follow.outcome(storage, status) == "made; its artifact is missing at the moment"


def clock(monkeypatch: pytest.MonkeyPatch, start: float) -> Callable[[float], None]:
    now = start
    monkeypatch.setattr(follow.time, "monotonic", lambda: now)

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    return advance


def test_an_approval_is_asked_for_at_once_and_then_every_few_minutes(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    view = follow.Lines(storage, printed.append)
    advance = clock(monkeypatch, 10.0)
    view.show(follow.task_status(storage, "one", task("corpus.approve", "running")))
    waiting = follow.task_status(storage, "one", task("corpus.approve", follow.AWAITING_INPUT))
    for seconds in (1.0, 200.0, 101.0):
        advance(seconds)
        view.show(waiting)
    assert [line.partition(",")[0] for line in printed] == [
        "approve: started",
        *["approve: needs your approval in Airflow"] * 2,
    ]


def failing(storage: Storage, will_retry: bool = False) -> None:
    artifact.start(storage, "one", Identity(Stage("extract", 1), {}, 1, []))
    pointer = artifact.fail(storage, "one", "extract", "no WARC file matches 'x'\nmore", "check the path")
    to = pointer.model_copy(update={"log": "http://airflow/log", "will_retry": will_retry})
    artifact.write_pointer(storage, "one", to)


def test_a_failure_is_printed_with_its_reason(storage: Storage) -> None:
    printed: list[str] = []
    view = follow.Lines(storage, printed.append)
    failing(storage, will_retry=True)
    for state in ("up_for_retry", "up_for_retry", "failed"):
        view.show(follow.task_status(storage, "one", Task("corpus.extract", -1, state, 1, 100.0, 102.0)))
    assert printed == [
        "extract: failed, will be retried: no WARC file matches 'x'",
        "extract: failed: no WARC file matches 'x' (2.0 s)",
    ]


def test_a_task_that_is_no_stage_says_why_it_failed(storage: Storage) -> None:
    artifact.fail(storage, "one", "resolve", "recipes/x.yaml does not exist", "check the path")
    status = follow.task_status(storage, "one", task("resolve", "failed"))
    assert follow.outcome(storage, status) == "failed: recipes/x.yaml does not exist"


def test_an_error_that_names_a_page_does_nothing_to_the_terminal(storage: Storage) -> None:
    artifact.fail(storage, "one", "resolve", "http://x.test/\x1b]0;owned\x07 is no page", "name another")
    status = follow.task_status(storage, "one", task("resolve", "failed"))
    assert follow.outcome(storage, status) == "failed: http://x.test/\ufffd]0;owned\ufffd is no page"


def test_the_end_of_a_failed_run_names_cause_remedy_log_and_report(
    storage: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "demo-20261130T000000"
    filtered = artifact.start(storage, name, Identity(Stage("filter", 1), {}, 1, []))
    assert isinstance(filtered, Building)
    filtered.publish([], Counts(in_=2, kept=0, dropped={"gopher_few_letters": 2}))
    artifact.fail(storage, name, "tokenizer", "no document is left", "loosen the filters")
    report = artifact.start(storage, name, Identity(Stage("report", 1), {}, 1, []))
    assert isinstance(report, Building)
    storage.write(report.file("report.html"), b"<p>")
    report.publish([artifact.describe(storage, report.pointer.folder, "report.html", 1)])
    airflow = Fake("failed", [task("corpus.tokenizer", "failed"), task("report", "success")])
    airflow.log = lambda *_: ["the last line"]  # type: ignore[attr-defined]
    arguments = argparse.Namespace(
        recipe="recipes/demo.yaml", warcs=None, crawl=None, max_warcs=None, force=False, set=[]
    )
    with pytest.raises(run.TaskFailed) as raised:
        run.run(cast(Airflow, airflow), arguments, name, storage, Console(width=200))
    assert raised.value.what == "task corpus.tokenizer failed: no document is left"
    assert raised.value.remedy.startswith("loosen the filters")
    printed = capsys.readouterr().out
    assert "  | the last line" in printed and "report.html" in printed
    assert re.search(r"^filter +2 +0 .*made *$", printed, re.M) and re.search(r"^tokenizer .*failed *$", printed, re.M)
