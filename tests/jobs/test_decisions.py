"""Text and the decisions on it belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.stage import decisions
from pipeline import artifact
from pipeline.artifact import Building, Identity, Published, Stage
from pipeline.errors import ArtifactError
from pipeline.storage import Storage


def published(storage: Storage, name: str, seed: int, *inputs: Published) -> Published:
    """An artifact of one part."""
    building = artifact.start(
        storage, "test", Identity(Stage(name, 1), {}, seed, [source.as_input() for source in inputs])
    )
    assert isinstance(building, Building)
    storage.write(building.file("part-00000.parquet"), f"{name} {seed}".encode())
    return building.publish([artifact.describe(storage, building.pointer.folder, "part-00000.parquet", 1)])


def test_decisions_on_another_text_are_refused(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    text = published(storage, "extract", 1)
    decided = published(storage, "filter", 1, text)
    (part,) = decisions.aligned(text, decided, "000-")
    assert (part.name, part.text, part.decided) == ("000-00000", *text.files(), *decided.files())
    again = published(storage, "extract", 2)
    with pytest.raises(ArtifactError) as caught:
        decisions.aligned(again, decided)
    assert decided.folder in caught.value.what and again.folder in caught.value.what
    assert "from extract to filter again" in caught.value.remedy
