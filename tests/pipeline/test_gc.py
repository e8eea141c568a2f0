"""What a run leads to stays, and all else goes: only when asked to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifact, gc
from pipeline.artifact import Building, Identity, Input, Published, Stage
from pipeline.progress import Progress
from pipeline.storage import Storage


def begin(storage: Storage, run: str, stage: str, of: int, inputs: list[Published]) -> Building:
    sources: list[Input] = [source.as_input() for source in inputs]
    building = artifact.start(storage, run, Identity(Stage(stage, 1), {"of": of}, 1, sources))
    assert isinstance(building, Building)
    storage.write(building.file("data"), b"x" * 1000)
    building.commit("0", {})
    return building


def make(storage: Storage, run: str, stage: str, of: int, inputs: list[Published]) -> Published:
    building = begin(storage, run, stage, of, inputs)
    return building.publish([artifact.describe(storage, building.pointer.folder, "data", 1)])


def age(storage: Storage, run: str, days: float) -> None:
    """Make all stages of a run so much older."""
    for name in storage.names(f"runs/{run}"):
        pointer = artifact.Pointer.model_validate_json(storage.read(name))
        older = pointer.model_copy(update={"started": pointer.started - days * gc.DAY})
        storage.write(name, older.model_dump_json().encode())


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def collect(storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: Any, *options: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["gc", "--root", storage.root, *options])
    capsys.readouterr()  # what the stages of the test printed
    gc.main()
    lines: list[str] = capsys.readouterr().out.splitlines()
    return lines


def test_what_no_run_leads_to_goes(storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shared = make(storage, "old", "extract", 1, [])
    lost = make(storage, "old", "filter", 1, [shared])
    kept = make(storage, "new", "filter", 2, [shared])
    under_way = begin(storage, "new", "shard", 2, [kept])
    age(storage, "old", 31)
    storage.write("crawl-data/CC-MAIN-2025-05/segments/1/a.warc.gz", b"not ours")
    before = storage.sizes("")
    told = collect(storage, monkeypatch, capsys)
    assert told[0] == "run old"
    assert [line.split("  ")[0] for line in told[1:-1]] == [f"_work/filter/{lost.content.fingerprint}", lost.folder]
    assert told[-1].startswith("1 runs and 2 folders, 0.0 MB would be removed")
    assert storage.sizes("") == before
    collect(storage, monkeypatch, capsys, "--delete")
    assert not artifact.is_published(storage, lost.folder)
    assert storage.exists("crawl-data/CC-MAIN-2025-05/segments/1/a.warc.gz")
    assert not storage.names("runs/old") and not storage.names(lost.folder)
    for found in (shared, kept):
        artifact.read(storage, found.folder).verify()
        assert storage.names(f"_work/{found.content.stage}/{found.content.fingerprint}")
    assert under_way.committed() == ["0"]
    assert collect(storage, monkeypatch, capsys, "--delete")[-1].startswith("0 runs and 0 folders")


def test_what_a_stage_under_way_reads_stays(storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    source = make(storage, "old", "extract", 1, [])
    begin(storage, "new", "filter", 1, [source])
    age(storage, "old", 31)
    collect(storage, monkeypatch, capsys, "--delete")
    assert artifact.is_published(storage, source.folder)


def test_days_are_days(storage: Storage) -> None:
    make(storage, "one", "extract", 1, [])
    age(storage, "one", 3)
    runs = artifact.pointers(storage)
    assert gc.forgotten(storage, runs, time.time() - 2 * gc.DAY) == ["one"]
    assert gc.forgotten(storage, runs, time.time() - 4 * gc.DAY) == []


def test_a_long_training_that_tells_of_itself_stays(storage: Storage) -> None:
    building = begin(storage, "one", "pretrain", 1, [])
    age(storage, "one", 90)
    assert gc.forgotten(storage, artifact.pointers(storage), time.time() - gc.DAY) == ["one"]
    Progress(storage, building.progress_folder, "pretrain", "step")(1, 2)
    assert gc.forgotten(storage, artifact.pointers(storage), time.time() - gc.DAY) == []


def test_an_empty_root_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert collect(Storage(tmp_path / "none"), monkeypatch, capsys, "--delete") == [
        "0 runs and 0 folders, 0.0 MB removed"
    ]
