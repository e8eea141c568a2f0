"""The DAG: its order, what parsing it costs, its command lines, and when a stage counts as done."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException

from dags.crawl_to_chat import dag
from dags.parts import operators, spark_submit, tasks
from dags.parts.child import Child
from dags.parts.operators import ProcessStage, SparkStage, TrainingStage
from dags.parts.retries import StageFailed
from dags.parts.tasks import resolve
from pipeline import artifact
from pipeline.artifact import Counts, Identity, Stage
from pipeline.errors import InputError, RecipeError
from pipeline.stages import STEPS
from pipeline.storage import Storage
from tests.dags.support import task_of
from tests.local.runs import LONGEST, until

ORDER = [
    "resolve",
    *(f"corpus.{name}" for name in ("canary", "approve", "extract_batch", "extract", "filter", "deduplicate")),
    *(f"corpus.{name}" for name in ("redact", "decontaminate", "tokenizer", "shard")),
    *(f"model.{name}" for name in ("approve", "pretrain", "evaluate_base", "sft", "evaluate_sft", "rl", "evaluate_rl")),
    "report",
    "announce_model",
]


def test_one_task_follows_the_other():
    more = {
        "corpus.extract_batch": {"corpus.canary"},  # it returns the batches
        "report": {"corpus_report"},
        "announce_model": {"resolve", "model.evaluate_rl"},
    }
    for before, after in pairwise(ORDER):
        assert dag.get_task(after).upstream_task_ids == {before} | more.get(after, set())
    assert dag.get_task("corpus_report").upstream_task_ids == {"corpus.shard"}
    assert {task.task_id for task in dag.tasks} == {*ORDER, "corpus_report"}


def test_values_are_rendered_as_text():
    assert dag.render_template_as_native_obj is False


def test_every_script_that_a_task_starts_exists():
    for task in dag.tasks:
        if isinstance(task, SparkStage):
            assert os.path.isfile(task.application)
        elif isinstance(task, TrainingStage):
            assert os.path.isfile(task.arguments[0])


def test_parsing_is_light():
    code = (
        "import sys, time, airflow.sdk, airflow.providers.apache.spark.operators.spark_submit\n"
        "began = time.process_time()\n"
        "import dags.backfill, dags.crawl_to_chat, dags.corpus, dags.model\n"
        "print(time.process_time() - began)\n"
        "print(*(m for m in ('pyspark', 'torch', 'deepspeed', 'transformers', 'tokenizers') if m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONGEST)
    seconds, heavy = result.stdout.split("\n")[:2]
    assert heavy == ""
    assert float(seconds) < 3


CONTEXT = {"ti": SimpleNamespace(run_id="one", xcom_push=lambda key, value: None)}


@pytest.fixture
def run_folder(tmp_path):
    """A root whose run `one` holds a published `extract` and an unfinished `filter`."""
    storage = Storage(tmp_path)
    building = artifact.start(storage, "one", Identity(Stage("extract", 1), {}, 1, []))
    building.publish([], Counts(in_=5, kept=3, dropped={"not_200": 2}))
    artifact.start(storage, "one", Identity(Stage("filter", 1), {}, 1, []))
    return tmp_path


def arguments(root, run="one"):
    return ["--recipe", "r.yaml", "--root", str(root), "--run", run]


def test_the_log_has_a_summary_with_the_counts(run_folder):
    line = operators.summary("extract", operators.published(arguments(run_folder), "extract"))
    assert "5 in = 3 kept + 2 dropped (2 not_200)" in line


@pytest.mark.parametrize("stage", ["filter", "shard"])
def test_a_driver_that_vanished_is_no_success(run_folder, stage):
    with pytest.raises(AirflowException, match="published nothing"):
        operators.published(arguments(run_folder), stage)


@pytest.mark.parametrize(("files", "count"), [(0, 0), (199, 0), (200, 2), (1999, 19), (90_000, 20)])
def test_batches_are_as_many_as_have_enough_to_do(files, count):
    assert operators.batches(files) == [["--batch", f"{number}/{count}"] for number in range(1, count + 1)]


@pytest.fixture
def canary_folder(run_folder):
    """`run_folder` with the canary of 300 files, and the extract of other files begun in run `two`."""
    storage = Storage(run_folder)
    published = artifact.of_run(storage, "one", "extract").folder
    for run, extract in (("one", published), ("two", "extract/all/none")):
        building = artifact.start(storage, run, Identity(Stage("canary", 1), {"of": run}, 1, []))
        building.publish([], None, {"files": 300, "canary_files": 2, "extract": extract})
    return run_folder


def test_a_canary_returns_the_batches_unless_extract_is_done(canary_folder):
    task = dag.get_task("corpus.canary")
    assert task.check(arguments(canary_folder, "two")) == [["--batch", f"{number}/3"] for number in (1, 2, 3)]
    assert task.check(arguments(canary_folder, "one")) == []


def test_a_batch_is_done_once_it_is_committed(run_folder):
    storage = Storage(run_folder)
    building = artifact.start(storage, "two", Identity(Stage("extract", 1), {"two": 2}, 1, []))
    task = operators.ExtractBatch(task_id="batch", arguments=["--batch", "2/20"])
    assert task.application_args[-2:] == ["--batch", "2/20"]
    of_batch = [*arguments(run_folder, "two"), "--batch", "2/20"]
    with pytest.raises(AirflowException, match="batch 2/20 of extract"):
        task.check(of_batch)
    building.commit("batch-2-of-20", {"files": 3})
    task.check(of_batch)
    task.check([*arguments(run_folder, "one"), "--batch", "2/20"])  # published


def rendered(task, force=False, tries=1):
    place = {"recipe": "r.yaml", "root": "/data", "run": "one"}
    ti = SimpleNamespace(xcom_pull=lambda task_ids: place, try_number=tries)
    task = task.prepare_for_execution() if hasattr(task, "prepare_for_execution") else task
    task.render_template_fields({"ti": ti, "params": {"force": force}})
    return task


def test_spark_stages_get_one_recipe_a_root_and_a_run():
    task = rendered(dag.get_task("corpus.tokenizer"))
    assert task.application.endswith("/jobs/train_tokenizer.py")
    assert operators.non_empty(task.application_args) == ["--recipe", "r.yaml", "--root", "/data", "--run", "one"]


def test_spark_submit_is_called_so(run_folder, monkeypatch):
    conn = {"conn_type": "spark", "host": "local[2]"}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(conn))
    monkeypatch.chdir(run_folder)
    task = rendered(dag.get_task("corpus.filter"), force=True)
    command = task._get_hook()._build_spark_submit_command(task.application)
    assert command[:3] == ["spark-submit", "--master", "local[2]"]
    assert command[command.index("--name") + 1] == "crawl2chat filter"
    place = ["--recipe", "r.yaml", "--root", "/data", "--run", "one", "--force"]
    assert command[-8:] == [f"{operators.HOME}/jobs/filter.py", *place]


@pytest.mark.parametrize("code", [0, 3])
def test_a_spark_stage_runs_in_the_project_folder_and_fails_with_the_exit_code(run_folder, monkeypatch, code):
    program = run_folder / "bin" / "spark-submit"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\npwd > {run_folder}/cwd\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))
    task = SparkStage(task_id="t", step=STEPS["extract"])
    task.application_args = [*arguments(run_folder), ""]
    if code:
        with pytest.raises(StageFailed) as raised:
            task.execute(CONTEXT)
        assert raised.value.exit_code == code
    else:
        task.execute(CONTEXT)
    assert (run_folder / "cwd").read_text().strip() == operators.HOME


@pytest.mark.parametrize(("stage", "asked"), [("filter", True), ("extract", True), ("canary", False)])
def test_a_spark_stage_that_is_published_starts_no_spark_submit(stage, asked, run_folder, monkeypatch):
    """The canary does: to look for it would list the whole input twice."""
    questions, submitted = [], []

    def published(stage, arguments, *_):
        questions.append((stage, "--force" in arguments))
        return True

    monkeypatch.setattr(operators.reuse, "published", published)
    monkeypatch.setattr(operators.spark_submit, "submit", lambda *_, **__: submitted.append(stage))
    monkeypatch.setattr(operators.SparkStage, "check", lambda *_: None)
    monkeypatch.setattr(operators.Canary, "check", lambda *_: None)
    task = operators.Canary(task_id="t") if stage == "canary" else SparkStage(task_id="t", step=STEPS[stage])
    task.application_args = arguments(run_folder)
    task.execute(CONTEXT)
    assert (questions, submitted) == (([(stage, False)], []) if asked else ([], [stage]))


def test_a_training_stage_that_is_published_launches_nothing(run_folder, monkeypatch):
    monkeypatch.setattr(operators.reuse, "published", lambda *_: True)
    monkeypatch.setattr(operators.TrainingStage, "launch", lambda _: pytest.fail("launched"))
    rendered(dag.get_task("model.pretrain")).execute(CONTEXT)


def test_a_jobset_looks_for_itself(run_folder, monkeypatch):
    """Its image may hold another build of torch, which is part of the fingerprint."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_DEEPSPEED_DEFAULT", json.dumps({"conn_type": "deepspeed", "extra": {"backend": "jobset"}})
    )
    monkeypatch.setattr(operators.reuse, "published", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(operators.ProcessStage, "execute", lambda *_: None)
    rendered(dag.get_task("model.pretrain")).execute(CONTEXT)


@pytest.mark.parametrize("code", [0, 10, 3])
def test_what_is_published_is_looked_for_by_a_process(code, run_folder, monkeypatch):
    started, logged = [], []

    class Search:
        def __init__(self, command, *_):
            started.append(command)

        def wait(self, log):
            log("filter: already made")
            return code

    monkeypatch.setattr(operators.reuse, "Child", Search)
    place = arguments(run_folder)
    assert not operators.reuse.published("shard", place, "/", logged.append) and not started  # no run has one
    place = arguments(run_folder, "two")
    assert operators.reuse.published("extract", place, "/", logged.append) is (code == 0)
    assert started == [[sys.executable, "-m", "pipeline.reuse", "--step", "extract", *place]]
    assert logged == (["filter: already made"] if code == 0 else [])
    assert not operators.reuse.published("extract", [*place, "--force"], "/", logged.append)
    assert len(started) == 1


def test_the_spark_provider_is_the_version_whose_private_members_are_used():
    """For another version, read its operator and hook again, then raise `spark_submit.VERSION`."""
    assert version(spark_submit.PROVIDER) == spark_submit.VERSION


def test_training_runs_under_deepspeed_with_the_ranks_of_the_connection(monkeypatch):
    conn = {"conn_type": "deepspeed", "extra": {"ranks": 2, "options": ["--zero-stage", 2]}}
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSPEED_DEFAULT", json.dumps(conn))
    command = rendered(dag.get_task("model.pretrain")).command()
    assert command[2:4] == ["-m", "deepspeed.launcher.launch"]
    assert command[4] == "--world_info=eyJsb2NhbGhvc3QiOiBbMCwgMV19"  # {"localhost": [0, 1]}
    place = ["--recipe", "r.yaml", "--root", "/data", "--run", "one"]
    assert command[-9:] == [f"{operators.HOME}/training/pretrain.py", *place, "--zero-stage", "2"]


def test_an_evaluation_is_one_process(monkeypatch):
    command = rendered(dag.get_task("model.evaluate_sft"), force=True).command()
    script = f"{operators.HOME}/evaluation/evaluate_model.py"
    assert command[1:5] == ["-u", script, "--of", "sft"]
    assert command[-1] == "--force"


def test_the_report_is_a_module():
    command = rendered(dag.get_task("report")).command()
    assert command[1:] == ["-u", "-m", "web.report", "--root", "/data", "--run", "one"]


def test_a_second_try_uses_what_the_first_made():
    assert rendered(dag.get_task("report"), force=True).command()[-1] == "--force"
    assert rendered(dag.get_task("report"), force=True, tries=2).command()[-1] == "one"


def process_stage(code, root, stage="extract"):
    task = ProcessStage(task_id="t", stage=stage, arguments=["-c", code, *arguments(root)])
    task.arguments = task.arguments[:-1]
    return task


def test_a_process_that_asks_for_it_is_started_again(run_folder):
    code = "import os, sys; p = 'starts'; n = os.path.exists(p); open(p, 'a').write('x'); sys.exit(0 if n else 85)"
    code = code.replace("'starts'", repr(str(run_folder / "starts"))).replace("'x'", "str('--force' in sys.argv)")
    task = process_stage(code, run_folder)
    task.arguments.append("--force")
    task.execute(CONTEXT)
    assert (run_folder / "starts").read_text() == "TrueFalse"  # a start again goes on with what was saved


@pytest.mark.parametrize("code", [1, 2])
def test_a_process_that_fails_fails_the_task(run_folder, code):
    with pytest.raises(StageFailed, match=f"exit code {code}"):
        process_stage(f"import sys; sys.exit({code})", run_folder).execute(CONTEXT)


def test_a_process_that_publishes_nothing_fails_the_task(run_folder):
    with pytest.raises(AirflowException, match="published nothing"):
        process_stage("pass", run_folder, stage="report").execute(CONTEXT)


def dead(pid):
    """Whether the process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def written_pid(file):
    """The process id that another process writes into this file."""
    return int(until(lambda: file.exists() and file.read_text(), 0.05))


def test_a_killed_task_leaves_no_process(run_folder):
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(run_folder / 'pid')!r}, 'w').write(str(p.pid))\n"
        "time.sleep(600)"
    )
    child = Child([sys.executable, "-c", code], str(run_folder), {})
    grandchild = written_pid(run_folder / "pid")
    child.stop(LONGEST)
    until(lambda: dead(grandchild), 0.05)


def test_a_child_does_not_outlive_a_task_that_is_killed_hard(tmp_path):
    file = tmp_path / "pid"
    code = (
        "from dags.parts.child import Child\n"
        f"c = Child(['sleep', '600'], {str(tmp_path)!r}, {{}})\n"
        f"open({str(file)!r}, 'w').write(str(c._process.pid))\n"
        "c.wait(print)"
    )
    task = subprocess.Popen([sys.executable, "-c", code])
    child = written_pid(file)
    task.send_signal(signal.SIGKILL)
    task.wait()
    until(lambda: dead(child), 0.05)


def test_resolve_writes_one_final_recipe(tmp_path):
    params = {"recipe": "recipes/demo.yaml", "root": str(tmp_path), "rl.steps": 3, "force": False}
    place = resolve.function(params, "manual__2026-01-01T00:00:00+00:00", task_of(dag))
    assert place["run"] == "manual__2026-01-01T00-00-00-00-00"
    assert place["recipe"] == f"{tmp_path}/runs/{place['run']}/recipe.yaml"
    assert "steps: 3" in Path(place["recipe"]).read_text()
    plan = artifact.plan(Storage(tmp_path), place["run"])
    assert plan.steps == tuple(STEPS)
    assert plan.airflow == "http://127.0.0.1:8080/dags/crawl_to_chat/runs/r"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"rl.step": 3}, RecipeError),
        ({"recipe": "nowhere.yaml"}, InputError),
        ({"pretrain.window": 4096}, RecipeError),
        ({"warcs": ["nosuch/*.warc.gz"]}, InputError),
        ({"sft.conversations": ["talks.jsonl"]}, InputError),
    ],
)
def test_a_bad_recipe_or_input_fails_with_its_reason_and_is_not_retried(tmp_path, change, kind):
    params = {"recipe": "recipes/demo.yaml", "root": str(tmp_path), **change}
    with pytest.raises(kind, match="->") as raised:
        resolve.function(params, "r", task_of(dag))
    policy = dag.get_task("resolve").retry_policy
    assert policy.evaluate(raised.value, 1, 5).action is RetryAction.FAIL
    assert not (tmp_path / "runs").exists()


def test_resolve_checks_what_its_dag_reads_and_logs_what_the_form_changes(tmp_path, caplog):
    params = {"recipe": "recipes/demo.yaml", "root": str(tmp_path), "sft.conversations": ["talks.jsonl"], "rl.steps": 2}
    with caplog.at_level(logging.INFO, "airflow.task"):
        resolve.function(params, "r", task_of(dag), tasks.CORPUS_SECTIONS)
    assert "differs from recipes/demo.yaml: rl.steps: 2 (recipe: 37)" in caplog.text
