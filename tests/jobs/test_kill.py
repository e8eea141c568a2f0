"""SIGKILL for any process of a Spark stage: a rerun ends with the same bytes, and no process stays behind."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import decontaminate, deduplicate, extract, filter, redact, shard, train_tokenizer
from pipeline import artifact, recipe
from pipeline.command import Job
from pipeline.storage import Storage
from tests.jobs.conftest import REPOSITORY, sharing

pytestmark = pytest.mark.slow
ROAD = (extract, filter, deduplicate, redact, decontaminate, train_tokenizer, shard)
RUN, SECONDS, TRIES = "demo", 600, 10
MARK = "CRAWL2CHAT_TEST_ROOT"  # in the environment of a stage and of all it starts, orphans included
Processes = list[psutil.Process]
Victims = Callable[[Processes], Processes]


def few(root: Path) -> Job:
    """Two files of the sample, and a tokenizer that is learned in a second."""
    overrides = {
        "input.warcs": [f"{REPOSITORY}/tests/data/sample/CC-SAMPLE-0000[04].warc.gz"],
        "tokenizer.vocabulary": 512,
    }
    return Job(recipe.load("recipes/demo.yaml", overrides), Storage(root), RUN, [], False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Path:
    """The corpus, made in one go; with the files between steps that a stage which is killed still has."""
    root = tmp_path_factory.mktemp("undisturbed")
    with sharing(spark), pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact.Building, "discard", lambda *_: None)
        for stage in ROAD:
            stage.run(few(root))
        (root / "recipe.yaml").write_text(few(root).recipe.to_yaml())
    return root


def start(root: Path, stage: str) -> subprocess.Popen[bytes]:
    """The stage as a user starts it."""
    command = [sys.executable, f"jobs/{stage}.py", "--recipe", str(root / "recipe.yaml"), "--root", str(root)]
    environment = os.environ | {MARK: str(root)}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def alive(root: Path) -> Processes:
    """Every process of the stage, also one whose parent is gone."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(root):
                found.append(process)
    return found


def family(process: subprocess.Popen[bytes]) -> Processes:
    """The processes of its session, which costs little to ask often: a step may take a tenth of a second."""
    found = []
    for pid in psutil.pids():
        with suppress(psutil.Error, OSError):
            if os.getsid(pid) == process.pid:
                found.append(psutil.Process(pid))
    return found


def driver(family: Processes) -> Processes:
    return [one for one in family if any(part.startswith("jobs/") for part in one.cmdline())]


def jvm(family: Processes) -> Processes:
    return [one for one in family if one.name() == "java"]


def workers(family: Processes) -> Processes:
    """The forks of Spark's Python daemon, in which our code runs."""
    daemons = {one.pid for one in family if "pyspark.daemon" in one.cmdline() and one.ppid() in pids(jvm(family))}
    return [one for one in family if one.ppid() in daemons]


def worker(family: Processes) -> Processes:
    """Those that compute: nobody misses one that waits for work."""
    return [one for one in workers(family) if one.status() == psutil.STATUS_RUNNING]


def everything(family: Processes) -> Processes:
    return family


def pids(processes: Iterable[psutil.Process]) -> set[int]:
    return {one.pid for one in processes}


def commits(root: Path, stage: str, step: str = "") -> dict[str, Path]:
    """What is committed of a step, by name."""
    return {path.name: path for path in (root / "_work" / stage).glob(f"*/commits/{step}*.json")}


def unpublish(root: Path, stage: str) -> None:
    for manifest in (root / stage).rglob("manifest.json"):
        manifest.unlink()


def kill(root: Path, stage: str, before: set[str], within: set[str], victims: Victims, pause: float) -> bool:
    """Start the stage and kill a victim (or all) in the middle of a step; whether the stage fell by it.

    All commits of `before` are there and one of `within` is missing, and a worker runs: the step is under way, for as
    long as `pause` seconds. The processes that are left must end by themselves.
    """
    process, killed = start(root, stage), Processes()
    began, wait = time.monotonic(), random.uniform(0, pause)
    while process.poll() is None and time.monotonic() < began + SECONDS and not killed:
        time.sleep(0.02)
        with suppress(psutil.NoSuchProcess):
            if before <= commits(root, stage).keys() and workers(family(process)):
                time.sleep(wait)
                wait = 0.0
                if within <= commits(root, stage).keys():
                    break  # the step was faster
                found = victims(family(process))
                for victim in found if victims is everything else found[:1]:
                    victim.kill()
                    killed.append(victim)
    fell = process.wait(SECONDS) != 0 and bool(killed)
    _, left = psutil.wait_procs(alive(root), timeout=SECONDS)
    assert not left, [other.cmdline() for other in left]
    return fell


def hashes(root: Path, stage: str) -> dict[str, str]:
    made = artifact.of_run(Storage(root), RUN, stage)
    made.verify()
    return {file.path: file.sha256 for file in made.content.files}


ALL = (worker, jvm, everything)
STEPS = {
    "extract": {"": (*ALL, driver)},
    "deduplicate": {"sign-": ALL, "clusters": ALL, "part-": ALL},
    "redact": {"": ALL},
    "shard": {"tokenize-": (worker, driver), "shard-": (worker, everything)},
}
PAUSES = {"clusters": 3.0}  # the search has many Spark stages


@pytest.mark.parametrize("stage", STEPS)
def test_any_process_killed_in_any_step(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    root, killed = tmp_path / "root", 0
    shutil.copytree(undisturbed, root)
    shutil.rmtree(root / stage)
    shutil.rmtree(root / "_work" / stage)
    (root / "runs" / RUN / f"{stage}.json").unlink()
    random.seed(stage)
    before: set[str] = set()
    for step, all_victims in STEPS[stage].items():
        within = set(commits(undisturbed, stage, step))
        for victims in all_victims:
            for _ in range(TRIES):
                made = commits(root, stage, step)
                if within <= made.keys():  # it was finished by the last attempt: a part of it is to be done again
                    random.choice(list(made.values())).unlink()
                    unpublish(root, stage)
                if kill(root, stage, before, within, victims, PAUSES.get(step, 0.3)):
                    killed += 1
                    break
            else:
                pytest.fail(f"no {victims.__name__} could be killed in step {step!r} of {stage}")
        before |= within
    assert start(root, stage).wait(SECONDS) == 0
    assert hashes(root, stage) == hashes(undisturbed, stage)
    assert (
        artifact.of_run(Storage(root), RUN, stage).manifest.run.attempts
        >= killed
        == sum(map(len, STEPS[stage].values()))
    )
