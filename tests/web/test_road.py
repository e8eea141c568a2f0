"""The picture of the road, whatever the number of stages."""

from __future__ import annotations

import re

import pytest

from pipeline.stages import CORPUS, MODEL
from web import road


@pytest.mark.parametrize(
    ("corpus", "model"), [(CORPUS, MODEL), (CORPUS, MODEL * 3), (CORPUS[:2], MODEL), (CORPUS * 2, MODEL)]
)
def test_every_stage_has_its_box_within_the_picture(
    corpus: tuple[road.Step, ...], model: tuple[road.Step, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road, "CORPUS", corpus)
    monkeypatch.setattr(road, "MODEL", model)
    svg = road.svg()
    size = re.search(r'viewBox="0 0 (\d+) ', svg)
    assert size is not None
    boxes = [float(x) for x in re.findall(rf'<rect x="([\d.]+)" [^>]*width="{road.BOX}"', svg)]
    assert len(boxes) == 1 + 1 + len(corpus) + len(model) + 1
    assert max(boxes) + road.BOX + road.LEFT == float(size[1])
