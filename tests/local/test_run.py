"""The command line of a run, what it shows, and the whole of it (slow)."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from dags.parts.form import overrides
from local import follow, summary
from local.client import Task
from local.processes import members
from local.run import form, options, resolved, settings
from pipeline import artifact
from pipeline.artifact import Counts, Identity, RunArtifacts, Stage
from pipeline.errors import InputError, RecipeError
from pipeline.progress import Progress
from pipeline.recipe import load
from pipeline.storage import Storage
from tests.local.runs import LONGEST, SMALL, driver, processes, until


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--max-warcs 2",
        "--warcs tests/data/sample/CC-SAMPLE-00000.warc.gz tests/data/sample/CC-SAMPLE-00001.warc.gz",
        "--crawl CC-MAIN-2025-05 --max-warcs 1",
        "--set rl.steps=2 deduplicate.verify=false pretrain.optimizer.betas=[0.9,0.99]",
    ],
)
def test_the_form_builds_the_recipe_that_was_checked(line):
    arguments = options(line.split())
    filled = form(arguments, "/data")
    assert load(filled["recipe"], overrides(filled)) == resolved(arguments)


def test_options_that_were_not_set_are_not_in_the_form():
    assert form(options([]), "/data") == {"recipe": "recipes/demo.yaml", "root": "/data"}
    assert form(options(["--force"]), "/data")["force"] is True


def test_mistakes_are_found_before_airflow_starts():
    with pytest.raises(InputError, match=r"input\.warcs: no WARC file matches"):
        resolved(options(["--warcs", "nowhere.warc.gz"]))
    with pytest.raises(RecipeError, match="no such key"):
        resolved(options(["--set", "rl.step=2"]))
    with pytest.raises(RecipeError, match=r"rl\.steps"):
        resolved(options(["--set", "rl.steps=few"]))
    with pytest.raises(RecipeError, match="not KEY=VALUE"):
        settings(["rl.steps"])
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        settings(["rl.steps=!!python/object/apply:os.getcwd []"])
    for null in ("input.max_warcs=null", "input.max_warcs=", "input.max_warcs=~"):
        with pytest.raises(RecipeError, match="recipe file"):
            resolved(options(["--set", null]))
    with pytest.raises(RecipeError, match="warcs"):
        resolved(options(["--warcs", "tests/data/sample/*.warc.gz", "--crawl", "CC-MAIN-2025-05"]))


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def status(storage, name, state, tries=1):
    ended = 112.5 if state == "success" else None
    return follow.task_status(storage, "one", Task(name, -1, state, tries, 100.0, ended))


def test_lines_say_begin_progress_and_outcome(storage, monkeypatch):
    printed = []
    view = follow.Lines(storage, printed.append)
    view.show(status(storage, "corpus.extract", "running"))
    building = artifact.start(storage, "one", Identity(Stage("extract", 1), {}, 1, []))
    progress = Progress(storage, building.progress_folder, "extract", "warc")
    progress(1, 5)
    progress(2, 5, loss=1.23456)
    progress.flush()
    monkeypatch.setattr(follow, "_LINE_SECONDS", -1.0)
    view.show(status(storage, "corpus.extract", "running"))
    building.publish([], Counts(in_=1500, kept=3, dropped={"not_200": 1497}))
    view.show(status(storage, "corpus.extract", "success"))
    artifact.start(storage, "one", Identity(Stage("extract", 1), {}, 1, []))
    view.show(status(storage, "corpus.extract", "success"))
    assert printed == [
        "extract: started",
        "extract: 2/5 warc, loss 1.235",
        "extract: 1,500 in, 3 kept (12.5 s)",
        "extract: already made (12.5 s)",
    ]


def shown(storage):
    console = Console(file=io.StringIO(), width=200)
    summary.show(RunArtifacts(storage, "one"), console)
    return console.file.getvalue()


def publish(storage, stage, name=None, numbers=None, results=None):
    building = artifact.start(storage, "one", Identity(Stage(stage, 1), {"of": name}, 1, []), name=name)
    files = []
    if results:
        storage.write(building.file("results.json"), json.dumps(results).encode())
        files = [artifact.describe(storage, building.pointer.folder, "results.json", 1)]
    building.publish(files, numbers=numbers)


def test_the_summary_says_what_is_there_and_invents_nothing(storage):
    publish(storage, "pretrain", numbers={"loss_first": 8.3, "bits_per_byte": 2.5, "bigram_bits_per_byte": 3.1})
    text = shown(storage)
    assert "held-out text: 2.500 bits per byte (bigram table 3.100)" in text
    for absent in ("loss 8", "arithmetic", "assistant", "report", "nothing was done", "nan", "None"):
        assert absent not in text


def test_the_next_commands_are_copied_as_they_stand(tmp_path, monkeypatch):
    storage = Storage(tmp_path / "a root")
    for stage in ("filter", "pretrain"):
        publish(storage, stage)
    quoted = f"ROOT='{tmp_path}/a root'"
    assert f"next:   make inspect STAGE=filter {quoted}  # pages" in shown(storage)
    assert "make chat" not in shown(storage)  # a base model does not answer
    publish(storage, "sft")
    monkeypatch.setattr(summary, "DEFAULT_ROOT", Path(storage.root))
    assert re.search(r"^next:   make chat +# talk to it$", shown(storage), re.MULTILINE)


def test_the_summary_of_a_whole_run(storage):
    publish(storage, "pretrain", numbers={"loss_first": 8.31, "loss_last": 4.2})
    chats = [{"user": f"q{i}", "assistant": f"[answer] {i}"} for i in range(5)]
    publish(storage, "evaluation", "evaluation-sft", {"arithmetic.sampled_accuracy": 0.4})
    publish(storage, "evaluation", "evaluation-rl", {"arithmetic.sampled_accuracy": 0.65}, {"chats": chats})
    text = shown(storage)
    assert "loss 8.31 -> 4.20" in text
    assert "arithmetic, held-out questions, sampled: 40.0% before reinforcement learning, 65.0% after" in text
    assert re.findall(r"(user|assistant) +(.+)", text)[:2] == [("user", "q0"), ("assistant", "[answer] 0")]
    assert "q2" in text
    assert "q3" not in text


def test_a_run_that_makes_nothing_new_says_so(storage):
    for stage in ("extract", "filter"):
        publish(storage, stage)
        artifact.start(storage, "one", Identity(Stage(stage, 1), {"of": None}, 1, []))
    publish(storage, "report")
    assert "every stage was already made; nothing was done again" in shown(storage)


def command(root, *more):
    small = [f"{key}={value}" for key, value in SMALL.items()]
    return [sys.executable, "-m", "local.run", "--root", str(root), "--port", "8197", *more, "--set", *small]


SESSION = Path(".crawl2chat/airflow/session")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A root on which a whole run went through Airflow, and what that run printed."""
    root = tmp_path_factory.mktemp("whole") / "data"
    return root, subprocess.run(command(root), capture_output=True, text=True, timeout=LONGEST)


@pytest.mark.slow
@pytest.mark.gate
def test_a_whole_run(whole):
    """From the recipe to the report, as `make run`: the DAG is triggered and followed through the REST API."""
    _, done = whole
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^report: .*report\.html$", done.stdout, re.MULTILINE)
    assert re.search(r"^assistant ", done.stdout, re.MULTILINE)
    assert "arithmetic, held-out questions, sampled" in done.stdout
    assert not SESSION.exists()


@pytest.mark.slow
def test_a_second_run_finds_all_of_it_made(whole):
    root, _ = whole
    done = subprocess.run(command(root), capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every stage was already made; nothing was done again" in done.stdout
    assert "Airflow" not in done.stdout and re.search(r"^report: .*report\.html$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_a_run_that_is_interrupted_leaves_nothing_behind(whole):
    root, _ = whole
    third = subprocess.Popen(command(root, "--force"), stdout=subprocess.PIPE, text=True)
    for line in third.stdout:
        if line.startswith("extract: started"):
            break
    number = int(SESSION.read_text())
    until(lambda: processes(number, driver), 0.1)
    third.send_signal(signal.SIGTERM)
    assert third.wait(LONGEST) == 130
    assert members(number) == []
    third.stdout.close()


@pytest.mark.slow
def test_a_task_that_fails_is_named_with_its_log(tmp_path):
    bad = tmp_path / "bad.warc.gz"
    bad.write_bytes(os.urandom(1000))
    done = subprocess.run(
        command(tmp_path / "data", "--warcs", str(bad)), capture_output=True, text=True, timeout=LONGEST
    )
    assert done.returncode == 1
    assert "task corpus.extract failed" in done.stderr
    assert "none of the files could be read as WARC" in done.stderr
    assert done.stdout.count("extract: started") == 1  # our own errors are not retried
