"""Numbers that rooms read of each other's manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import artifact
from pipeline.artifact import Building, Identity, Published, Stage
from pipeline.errors import ArtifactError
from pipeline.numbers import CanaryNumbers, TokenizerNumbers, asked_tasks, named
from pipeline.storage import Storage


def published(root: Path, numbers: dict[str, Any]) -> Published:
    building = artifact.start(Storage(root), "one", Identity(Stage("tokenizer", 1), numbers, 1, []))
    assert isinstance(building, Building)
    return building.publish([], numbers=numbers)


def test_what_is_written_is_read_and_what_is_for_people_stays(tmp_path: Path) -> None:
    written = TokenizerNumbers(vocabulary=600, sha256="0").plain() | {"bytes_per_token": 3.5}
    assert TokenizerNumbers.of(published(tmp_path, written)).vocabulary == 600
    assert CanaryNumbers(files=3, canary_files=0, extract="x").plain() == {
        "files": 3,
        "canary_files": 0,
        "extract": "x",
    }


@pytest.mark.parametrize("numbers", [{"vocabulary": 600}, {"vocabulary": "many", "sha256": "0"}])
def test_a_number_that_is_missing_is_named(numbers: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer/all/[0-9a-f]+ has no fitting number '(sha256|vocabulary)'"):
        TokenizerNumbers.of(published(tmp_path, numbers))


def test_numbers_of_tasks() -> None:
    numbers = {
        "arithmetic.sampled_accuracy": 0.5,
        "spelling.greedy_accuracy": 1.0,
        "identity_said": 0.2,
        "x_accuracy": 1,
    }
    assert asked_tasks(numbers) == ["arithmetic", "spelling"] and asked_tasks(None) == []
    assert named(numbers | {"loss": None}, ("loss", "identity_said", "sampled_accuracy")) == {
        "identity_said": 0.2,
        "arithmetic.sampled_accuracy": 0.5,
    }
