"""A task that fails is recorded in its run: what happened, what to do, where the log is, whether it is tried again."""

from __future__ import annotations

import json
import os
import time

import pytest
from airflow.providers.standard.exceptions import HITLRejectException
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from dags import backfill, corpus, crawl_to_chat, model
from dags.parts import failures, operators
from dags.parts.operators import ProcessStage, SparkStage
from dags.parts.retries import StageFailed
from pipeline import artifact, errors
from pipeline.artifact import Identity, Stage
from pipeline.errors import InputError
from pipeline.stages import STEPS
from pipeline.storage import Storage
from tests.dags.support import AIRFLOW, task_of


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def context(storage, task_id, error=None, run="one"):
    where = {"root": storage.root, "run": run} if task_id != "resolve" else None
    task = task_of(corpus.dag, task_id, run, where)
    return {"ti": task, "exception": error, "params": {"root": storage.root}}


def recorded(storage, name):
    pointer = artifact.pointer(storage, "one", name)
    assert pointer and pointer.state == "failed"
    return pointer


def begin(storage, stage):
    return artifact.start(storage, "one", Identity(Stage(stage, 1), {}, 1, []))


@pytest.mark.parametrize("code", [-9, 137, 256 - 9])
def test_a_killed_stage_is_named_as_out_of_memory_or_killed(storage, code):
    begin(storage, "extract")
    failures.on_failure(context(storage, "corpus.extract", StageFailed("extract", code)))
    pointer = recorded(storage, "extract")
    assert "SIGKILL" in pointer.error and "memory" in pointer.error and "memory" in pointer.remedy
    assert pointer.log == f"{AIRFLOW}/dags/corpus/runs/one/tasks/corpus.extract?try_number=1"
    assert not pointer.will_retry and artifact.run_state(storage, "one").state == "failed"


@pytest.mark.parametrize(("code", "number"), [(None, 0), (1, 0), (85, 0), (7, 0), (143, 15), (-15, 15), (241, 15)])
def test_other_exit_codes(code, number):
    assert failures.signal_of(code) == number


def test_what_the_stage_recorded_stays_and_gets_the_log(storage):
    began = context(storage, "corpus.extract", StageFailed("extract", 3))
    artifact.fail(storage, "one", "extract", "no WARC file matches 'x'", "check the path")
    failures.on_failure(began)
    pointer = recorded(storage, "extract")
    assert (pointer.error, pointer.remedy) == ("no WARC file matches 'x'", "check the path")
    assert pointer.log.startswith(AIRFLOW)


def test_what_an_earlier_try_recorded_does_not_stay(storage):
    artifact.fail(storage, "one", "extract", "no answer", "wait")
    time.sleep(0.01)
    failures.on_retry(context(storage, "corpus.extract_batch", StageFailed("extract", 4)))
    pointer = recorded(storage, "extract")
    assert "exit code 4, ArtifactError" in pointer.error and pointer.will_retry
    assert not artifact.run_state(storage, "one").over


def test_a_recipe_that_is_refused_is_recorded_and_forgotten_when_it_is_right(storage):
    at = context(storage, "resolve", InputError("nowhere.yaml is missing", "check the path"))
    failures.on_failure(at)
    assert recorded(storage, "resolve").error == "nowhere.yaml is missing"
    assert artifact.run_state(storage, "one").state == "failed"
    failures.on_execute(at)
    assert artifact.pointer(storage, "one", "resolve") is None


def test_a_stage_keeps_what_it_recorded_until_it_begins_again(storage):
    artifact.fail(storage, "one", "extract", "no answer", "wait")
    failures.on_execute(context(storage, "corpus.extract"))
    assert recorded(storage, "extract").error == "no answer"


def test_a_rejection_and_an_error_of_airflow_are_recorded(storage):
    failures.on_failure(context(storage, "corpus.approve", HITLRejectException("no")))
    assert "rejected" in recorded(storage, "corpus.approve").error
    failures.on_failure(context(storage, "corpus.filter", AirflowException("ended, but published nothing")))
    assert "published nothing" in recorded(storage, "filter").error
    failures.on_failure(context(storage, "corpus.shard"))
    assert recorded(storage, "shard").remedy


@pytest.mark.parametrize("dag", [corpus.dag, model.dag, crawl_to_chat.dag], ids=lambda dag: dag.dag_id)
def test_every_task_of_a_run_is_recorded(dag):
    for task in dag.tasks:
        kwargs = task.partial_kwargs if hasattr(task, "partial_kwargs") else vars(task)
        assert failures.on_failure in _list(kwargs["on_failure_callback"]), task.task_id
        assert failures.on_retry in _list(kwargs["on_retry_callback"]), task.task_id
    of_backfill = _list(vars(backfill.dag.get_task("runs"))["on_failure_callback"])
    assert failures.on_failure not in of_backfill, "it has no run of its own"


def _list(callbacks):
    return callbacks if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []


def test_a_stage_that_airflow_stops_says_so(storage):
    arguments = ["--recipe", "r.yaml", "--root", storage.root, "--run", "one"]
    building = begin(storage, "pretrain")
    task = ProcessStage(task_id="t", stage="pretrain", arguments=["-c", "", *arguments])
    task._launch = type("Launch", (), {"request_stop": lambda self: None})()
    task.on_kill()
    pointer = recorded(storage, "pretrain")
    assert "stopped in Airflow" in pointer.error and pointer.work == building.work


def test_a_driver_that_is_killed_is_recorded_with_its_exit_code(storage, monkeypatch):
    """The whole way: a process that kills itself, the operator, the callback."""
    program = os.path.join(storage.root, "bin", "spark-submit")
    os.makedirs(os.path.dirname(program))
    with open(program, "w") as file:
        file.write("#!/bin/sh\nkill -9 $$\n")
    os.chmod(program, 0o755)
    monkeypatch.setenv("PATH", f"{os.path.dirname(program)}:{os.environ['PATH']}")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))
    task = SparkStage(task_id="t", step=STEPS["extract"])
    task.application_args = ["--recipe", "r.yaml", "--root", storage.root, "--run", "one"]
    ti = task_of(corpus.dag)
    ti.xcom_push = lambda key, value: None
    with pytest.raises(StageFailed) as raised:
        task.execute({"ti": ti})
    failures.on_failure(context(storage, "corpus.extract", raised.value))
    assert "SIGKILL, exit code -9" in recorded(storage, "extract").error


def test_the_report_is_made_of_failed_runs_and_of_a_corpus_as_soon_as_it_is_there():
    for module in (corpus, model, crawl_to_chat):
        assert module.dag.get_task("report").trigger_rule == TriggerRule.ALL_DONE
        # Airflow takes a run's state from its last tasks: the report, which succeeds, must not be one of them.
        (last,) = [task for task in module.dag.tasks if not task.downstream_task_ids]
        assert last.task_id.startswith("announce_") and last.trigger_rule == TriggerRule.ALL_SUCCESS
        stages = {"corpus": "corpus.shard"}.get(module.dag.dag_id, "model.evaluate_rl")
        assert {stages, "report"} <= last.upstream_task_ids
    assert crawl_to_chat.dag.get_task("corpus_report").trigger_rule == TriggerRule.ALL_SUCCESS


def test_a_run_that_was_never_begun_has_no_report():
    report = crawl_to_chat.dag.get_task("report").prepare_for_execution()
    ti = task_of(crawl_to_chat.dag)
    ti.try_number = 1
    report.render_template_fields({"ti": ti, "params": {"force": False}})
    with pytest.raises(AirflowSkipException, match="nothing to report"):
        report.execute({"ti": ti})


def test_kinds_of_errors_are_known_by_their_exit_codes():
    codes = [kind.exit_code for kind in errors.kinds()]
    assert len(set(codes)) == len(codes) and errors.ServerError in errors.kinds()
    assert operators.EXIT_RESUME in codes
