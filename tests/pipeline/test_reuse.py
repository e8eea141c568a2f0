"""What is published is found without Spark, DeepSpeed or torch, and nothing else is started for it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifact, command, recipe, reuse
from pipeline.artifact import Building, Identity, Stage
from pipeline.command import Job
from pipeline.errors import NotPublished
from pipeline.stages import ROAD, STEPS, Step
from pipeline.storage import Storage


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(recipe.load("recipes/demo.yaml"), Storage(tmp_path), "new", [], False)


def test_every_stage_can_be_opened_where_no_jvm_and_no_torch_is() -> None:
    """In a process of its own: this one may have imported them."""
    named = [step.opens.partition(":")[::2] for step in ROAD]
    code = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'deepspeed', 'transformers']))\n"
        f"for module, function in {named!r}: assert callable(getattr(importlib.import_module(module), function))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_is_not_published_leaves_no_trace(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotPublished, match="canary is not published"):
        reuse.find(job, STEPS["canary"])
    assert not any(job.storage.names(folder) for folder in ("runs", "canary", "_work"))
    assert capsys.readouterr().out == ""


def test_what_is_published_is_verified_and_the_run_points_to_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("filter", 1)
    building = artifact.start(job.storage, "old", Identity(stage, {}, 1, []))
    assert isinstance(building, Building)
    job.storage.write(building.file("a"), b"1")
    made = building.publish([artifact.describe(job.storage, building.pointer.folder, "a", 1)])
    opened: list[Any] = []

    def opens(job: Job) -> None:
        opened.append(command.start(job, Identity(stage, {}, 1, [])))

    monkeypatch.setattr(import_module("jobs.filter"), "run", opens)
    reuse.find(job, STEPS["filter"])
    pointer = artifact.pointer(job.storage, "new", "filter")
    assert opened == [made] and pointer is not None and (pointer.state, pointer.folder) == ("reused", made.folder)


def test_a_room_that_is_not_installed_is_no_error(job: Job) -> None:
    """On Kubernetes Airflow's image need not hold what a stage imports."""
    step = Step("x", "x", "X", "", "", (), "", opens="nowhere:run")
    with pytest.raises(NotPublished, match="not known here: No module named 'nowhere'"):
        reuse.find(job, step)


def test_the_command_exits_with_a_code_of_its_own(tmp_path: Path) -> None:
    options = ["--recipe", "recipes/demo.yaml", "--root", str(tmp_path), "--run", "new"]
    done = subprocess.run([sys.executable, "-m", "pipeline.reuse", *options], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (NotPublished.exit_code, ""), done.stderr
