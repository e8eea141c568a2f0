"""SIGKILL for any process of a Spark stage: a rerun ends with the same bytes, and no process stays behind."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import decontaminate, deduplicate, extract, filter, redact, shard, train_tokenizer
from pipeline import artifact
from pipeline.storage import Storage
from tests.jobs.conftest import REPOSITORY, job

pytestmark = pytest.mark.slow
ROAD = (extract, filter, deduplicate, redact, decontaminate, train_tokenizer, shard)
SECONDS = 120
Victims = Callable[[psutil.Popen], list[psutil.Process]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Path:
    """The corpus of the sample, made in one go."""
    root = tmp_path_factory.mktemp("undisturbed")
    patch = pytest.MonkeyPatch()
    patch.chdir(REPOSITORY)
    patch.setattr("jobs.session.spark", lambda name: spark)
    patch.setattr(spark, "stop", lambda: None)
    for stage in ROAD:
        stage.run(job(root, run="demo"))
    patch.undo()
    return root


def start(root: Path, script: str) -> psutil.Popen:
    """The stage as a user starts it."""
    command = [sys.executable, f"jobs/{script}", "--recipe", "recipes/demo.yaml", "--root", str(root)]
    return psutil.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def commits(root: Path, stage: str) -> list[Path]:
    return list((root / "_work" / stage).glob("*/commits/*.json"))


def driver(process: psutil.Popen) -> list[psutil.Process]:
    return [process]


def jvm(process: psutil.Popen) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.name() == "java"]


def worker(process: psutil.Popen) -> list[psutil.Process]:
    """Python below the JVM: the daemon, its forks, and the children in which they read pages."""
    return [
        child for child in process.children(recursive=True) if child.name() != "java" and child.ppid() != process.pid
    ]


def everything(process: psutil.Popen) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def kill(root: Path, stage: str, script: str, victims: Victims, after: int) -> int:
    """Start the stage, kill a victim (or all) once `after` parts more are committed; how many were killed."""
    before, process = len(commits(root, stage)), start(root, script)
    began, pause = time.monotonic(), random.uniform(0, 4) if after == 0 else 0.0
    while process.poll() is None and time.monotonic() < began + SECONDS:
        time.sleep(0.01)
        if len(commits(root, stage)) < before + after or time.monotonic() < began + pause:
            continue
        with suppress(psutil.NoSuchProcess):
            found, family = victims(process), everything(process)
            if not found:
                continue
            chosen = found if victims is everything else [random.choice(found)]
            for victim in chosen:
                victim.kill()
            _, alive = psutil.wait_procs(family, timeout=SECONDS)  # who lost a worker may well finish the stage
            assert not alive, [other.cmdline() for other in alive]
            return len(chosen)
    process.wait(SECONDS)
    return 0


def hashes(root: Path, stage: str) -> dict[str, str]:
    made = artifact.of_run(Storage(root), "demo", stage)
    made.verify()
    return {file.path: file.sha256 for file in made.content.files}


@pytest.mark.parametrize(("stage", "script"), [("extract", "extract.py"), ("shard", "shard.py")])
def test_any_process_killed_at_any_moment(stage: str, script: str, undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(undisturbed, root)
    shutil.rmtree(root / stage)
    shutil.rmtree(root / "_work" / stage)
    (root / "runs" / "demo" / f"{stage}.json").unlink()
    random.seed(stage)
    # Workers last: a stage that loses one may finish.
    attempts = [(driver, 0), (jvm, 0), (everything, 1), (driver, 1), (worker, 0), (worker, 1)]
    killed = [kill(root, stage, script, victims, after) for victims, after in attempts]
    assert min(killed[:3]) > 0, killed  # the fourth may find every part committed
    assert start(root, script).wait(SECONDS) == 0
    assert hashes(root, stage) == hashes(undisturbed, stage)
    assert artifact.of_run(Storage(root), "demo", stage).manifest.run.attempts >= 3
