"""What a model said while it learned, as it is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline import artifact
from pipeline.artifact import Building, Identity, Stage
from pipeline.storage import Storage
from training import samples


def test_the_run_is_named_and_a_model_cannot_write_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(tmp_path)
    building = artifact.start(storage, "mine", Identity(Stage("pretrain", 1), {}, 1, []))
    assert isinstance(building, Building)
    rows = [{"step": 50, "prompt": "The", "text": " cat\u202e \x9b2J"}]
    storage.write(f"{building.work}/{samples.SAMPLES}", "".join(json.dumps(row) + "\n" for row in rows).encode())
    monkeypatch.setattr(sys, "argv", ["samples", "--root", str(tmp_path)])
    samples.main()
    assert capsys.readouterr().out == "run mine\n'The'\n      50   cat\ufffd \ufffd2J\n"
