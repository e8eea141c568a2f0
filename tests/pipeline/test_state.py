"""What a run is doing, from its pointers and its plan; and how a stage records that it failed."""

from __future__ import annotations

import importlib
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline import artifact, command, gc
from pipeline.artifact import Building, Identity, Stage
from pipeline.command import Job, recording
from pipeline.errors import InputError, Interrupted, NodeError, StorageError
from pipeline.progress import Progress
from pipeline.recipe import load
from pipeline.stages import ROAD, Step
from pipeline.storage import Storage

RECIPE = Path(__file__).parents[2] / "recipes/demo.yaml"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def begin(storage: Storage, name: str, run: str = "one") -> Building:
    building = artifact.start(storage, run, Identity(Stage(name, 1), {"of": run}, 1, []))
    assert isinstance(building, Building)
    return building


def job(storage: Storage) -> Job:
    return Job(load(RECIPE), storage, "one", [], False)


def state(storage: Storage, run: str = "one") -> tuple[str, str]:
    at = artifact.run_state(storage, run)
    return at.state, at.step


def test_a_run_is_followed_from_its_plan_to_its_report(storage: Storage) -> None:
    assert not artifact.run_exists(storage, "one")
    artifact.write_plan(storage, "one", ("extract", "filter", "report"))
    assert artifact.run_exists(storage, "one") and state(storage) == ("waiting", "extract")
    building = begin(storage, "extract")
    assert state(storage) == ("running", "extract")
    building.publish([])
    assert state(storage) == ("waiting", "filter"), "between two stages it is said which one is next"
    begin(storage, "filter").publish([])
    begin(storage, "report").publish([])
    assert state(storage) == ("finished", "")
    assert artifact.run_state(storage, "one").over


def test_a_report_older_than_a_stage_is_still_to_come(storage: Storage) -> None:
    """That of the corpus is published while the model is trained: the run is not at its end by that."""
    artifact.write_plan(storage, "one", ("shard", "pretrain", "report"))
    begin(storage, "shard").publish([])
    begin(storage, "report").publish([])
    assert state(storage) == ("waiting", "pretrain")
    begin(storage, "pretrain").publish([])
    assert state(storage) == ("waiting", "report")


def test_a_run_without_a_plan_is_at_its_end_when_nothing_runs(storage: Storage) -> None:
    """Of stages that were started by hand, or by an older version."""
    begin(storage, "extract").publish([])
    assert state(storage) == ("finished", "")
    begin(storage, "filter")
    assert state(storage) == ("running", "filter")


def test_stages_that_were_taken_over_are_no_part_of_the_duration(storage: Storage) -> None:
    begin(storage, "shard", "corpus").publish([])
    old = artifact.pointer(storage, "corpus", "shard")
    assert old
    artifact.write_pointer(storage, "corpus", old.model_copy(update={"started": 1000.0}))
    artifact.write_plan(storage, "one", ("pretrain", "report"))
    artifact.adopt(storage, "corpus", "one", ["shard"])
    at = artifact.run_state(storage, "one")
    assert (at.state, at.step) == ("waiting", "pretrain") and at.seconds < 100


def test_a_plan_that_is_written_again_keeps_the_beginning(storage: Storage) -> None:
    first = artifact.write_plan(storage, "one", ("extract",), "http://airflow/one")
    again = artifact.write_plan(storage, "one", ("extract", "report"))
    assert again.began == first.began and artifact.plan(storage, "one") == again
    assert artifact.pointers(storage) == {"one": []} and artifact.RunArtifacts(storage, "one").pointers == {}


def test_an_error_is_recorded_with_its_remedy(storage: Storage) -> None:
    building = begin(storage, "extract")
    with pytest.raises(InputError), recording(job(storage), "extract"):
        raise InputError("no WARC file matches 'x'", "check the path")
    pointer = artifact.pointer(storage, "one", "extract")
    assert pointer and (pointer.state, pointer.error, pointer.remedy) == (
        "failed",
        "no WARC file matches 'x'",
        "check the path",
    )
    assert pointer.work == building.work and pointer.started == building.pointer.started
    assert state(storage) == ("failed", "extract")
    with pytest.raises(artifact.artifact.ArtifactError, match="stage extract failed in run 'one'"):
        artifact.of_run(storage, "one", "extract")
    begin(storage, "extract")
    assert state(storage) == ("running", "extract"), "started again, it has not failed"


def test_a_stage_that_fails_before_it_begins_is_recorded_too(storage: Storage) -> None:
    with pytest.raises(ZeroDivisionError), recording(job(storage), "canary"):
        print(1 // 0)
    pointer = artifact.pointer(storage, "one", "canary")
    assert pointer and pointer.error == "ZeroDivisionError: integer division or modulo by zero"
    assert "log" in pointer.remedy and pointer.folder == ""
    assert gc.needed(storage, [pointer]) == set()


@pytest.mark.parametrize("step", ROAD, ids=lambda step: step.name)
def test_every_stage_records_its_failures(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorded(Exception):
        """Raised where the stage begins to record."""

    def recorded(job: Job, name: str) -> None:
        raise Recorded(job.run, name)

    main = importlib.import_module(step.script.removesuffix(".py").replace("/", ".")).main
    of = ["--of", step.of] if step.of else []
    monkeypatch.setattr(sys, "argv", [step.script, "--recipe", str(RECIPE), "--root", str(tmp_path), *of])
    monkeypatch.setattr(command, "recording", recorded)
    with pytest.raises(Recorded) as stopped:
        main()
    assert stopped.value.args == ("demo", step.name)


def test_a_checkpoint_that_was_asked_for_is_no_failure(storage: Storage) -> None:
    begin(storage, "pretrain")
    with pytest.raises(Interrupted), recording(job(storage), "pretrain"):
        raise Interrupted("asked to stop", "start it again")
    assert state(storage) == ("running", "pretrain")


def test_of_several_ranks_the_first_one_names_the_cause(storage: Storage) -> None:
    begin(storage, "pretrain")
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(NodeError))
        stack.enter_context(recording(job(storage), "pretrain"))  # of rank 0
        with pytest.raises(MemoryError), recording(job(storage), "pretrain"):
            raise MemoryError("of rank 1")
        raise NodeError("rank 0 lost rank 1", "look there")
    pointer = artifact.pointer(storage, "one", "pretrain")
    assert pointer and pointer.error == "MemoryError: of rank 1"


def test_a_failure_that_cannot_be_recorded_is_still_raised(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise StorageError("disk full", "make room")

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(InputError), recording(job(storage), "extract"):
        raise InputError("broken", "mend it")
    assert "could not be recorded: disk full" in capsys.readouterr().err


def test_work_of_a_failed_stage_is_kept(storage: Storage) -> None:
    building = begin(storage, "extract")
    artifact.fail(storage, "one", "extract", "broken", "mend it")
    pointer = artifact.pointer(storage, "one", "extract")
    assert pointer and building.work in gc.needed(storage, [pointer])


def test_a_run_that_began_and_never_went_on_is_forgotten_in_the_end(storage: Storage) -> None:
    made = artifact.write_plan(storage, "one", ("extract",))
    runs = artifact.pointers(storage)
    assert gc.forgotten(storage, runs, made.began - 1) == []
    assert gc.forgotten(storage, runs, made.began + 1) == ["one"]
    assert artifact.pointers(storage, "extract") == {}


def test_a_failure_that_airflow_retries_is_not_the_end(storage: Storage) -> None:
    begin(storage, "extract")
    failed = artifact.fail(storage, "one", "extract", "no answer", "wait")
    artifact.write_pointer(storage, "one", failed.model_copy(update={"will_retry": True}))
    assert state(storage) == ("waiting", "extract") and not artifact.run_state(storage, "one").over


def test_the_report_that_runs_does_not_hide_a_failure(storage: Storage) -> None:
    artifact.fail(storage, "one", "shard", "too little is left", "loosen the filters")
    begin(storage, "report")
    assert state(storage) == ("failed", "shard")


def test_the_last_sign_of_a_stage_that_died_without_a_word(storage: Storage) -> None:
    building = begin(storage, "pretrain")
    Progress(storage, building.progress_folder, "pretrain", "step")(1, 1)
    died = building.pointer.model_copy(update={"started": time.time() - 7200})
    artifact.write_pointer(storage, "one", died)
    (event,) = storage.names(building.progress_folder)
    line = json.loads(storage.read(event)) | {"time": time.time() - 3600}
    storage.write(event, json.dumps(line).encode())
    at = artifact.run_state(storage, "one")
    assert at.state == "running" and 3590 < time.time() - at.last_sign < 3700


def test_pointers_of_an_older_version_are_read(storage: Storage) -> None:
    """They know nothing of errors, and their run has no plan."""
    old = {"name": "extract", "stage": "extract", "state": "published", "folder": "extract/all/0", "work": "_work/0"}
    old |= {"fingerprint": "0", "content_hash": "1", "started": 5.0, "seconds": 2.5}
    storage.write("runs/one/extract.json", json.dumps(old).encode())
    pointer = artifact.pointer(storage, "one", "extract")
    assert pointer and pointer.finished and pointer.error == ""
    at = artifact.run_state(storage, "one")
    assert (at.state, at.began, at.seconds) == ("finished", 5.0, 2.5)


def test_the_recipe_of_a_run(storage: Storage) -> None:
    assert artifact.recipe_name(storage, "one") == ""
    storage.write("runs/one/recipe.yaml", b"name: demo\n")
    assert artifact.recipe_name(storage, "one") == "demo"
