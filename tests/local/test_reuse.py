"""A run that would make nothing is complete without Airflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from local import reuse, run
from pipeline import artifact
from pipeline.artifact import Identity, Stage
from pipeline.recipe import load
from pipeline.storage import Storage

RECIPE = load("recipes/demo.yaml")


def test_a_run_that_has_something_to_make_leaves_nothing_of_the_search(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert not reuse.whole(RECIPE, storage, "new")
    assert not list(storage.names("runs"))


def test_an_interrupt_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reuse.whole(RECIPE, Storage(tmp_path), "new")
    assert not list(Storage(tmp_path).names("runs"))


def test_all_stages_are_found_then_the_report_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def ended(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", ended)
    assert reuse.whole(RECIPE, Storage(tmp_path), "new")
    file = tmp_path / "runs/new/recipe.yaml"
    where = ["--root", str(tmp_path), "--run", "new"]
    assert commands == [
        [sys.executable, "-m", "pipeline.reuse", "--recipe", str(file), *where],
        [sys.executable, "-m", "web.report", *where],
    ]
    assert load(str(file)) == RECIPE


@pytest.mark.parametrize(("options", "starts"), [([], False), (["--force"], True)], ids=["reused", "forced"])
def test_airflow_is_not_started_for_what_is_published(
    options: list[str], starts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Started(Exception):
        pass

    def start(*_: Any) -> None:
        raise Started

    def whole(_recipe: Any, storage: Storage, name: str) -> bool:
        for _ in range(2):
            opened = artifact.start(storage, name, Identity(Stage("filter", 1), {}, 1, []))
            if isinstance(opened, artifact.Building):
                opened.publish([])
        return True

    monkeypatch.setattr(reuse, "whole", whole)
    monkeypatch.setattr(run, "check_alone", start)
    monkeypatch.setattr(sys, "argv", ["run", "--root", str(tmp_path), *options])
    if starts:
        with pytest.raises(Started):
            run.main()
    else:
        run.main()
        assert "every stage was already made; nothing was done again" in capsys.readouterr().out
