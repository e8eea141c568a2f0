"""A row of extract is looked up in its archive again, unless that cannot be."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.commands import explain
from pipeline.errors import InputError
from pipeline.recipe import load
from pipeline.storage import Storage
from tests.jobs.test_warc import record


def extracted(location: str) -> Any:
    content = SimpleNamespace(
        inputs=[SimpleNamespace(location=location)], recipe=load("recipes/demo.yaml").section("extract")
    )
    return SimpleNamespace(content=content, folder="extract/all/x")


def row(**more: Any) -> dict[str, Any]:
    return {"url": "http://x.test/0", "warc": "a.warc.gz", "offset": 0, "date": "", "id": "x", "text": None} | more


def test_a_page_that_was_too_large_is_shown_as_it_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a remote archive so much would not be read as to reach its end."""
    monkeypatch.setattr(explain.artifact, "of_run", lambda *_: extracted("https://host/a.warc.gz"))
    large = row(html_bytes=1 << 30, reason="too_large", detail="more than 9 bytes")
    lines = list(explain.explained(Storage("/nowhere"), "run", large))
    assert lines[-1] == "  -> dropped: too_large (more than 9 bytes)" and not any("not as" in line for line in lines)


@pytest.mark.parametrize(
    "data",
    [b"", b"something else" * 9, gzip.compress(record("http://x.test/0", b"page"))[:-20]],
    ids=["nothing", "another file", "cut"],
)
def test_a_record_that_is_no_longer_there_is_a_clear_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(data)
    recipe = load("recipes/demo.yaml").extract
    with pytest.raises(InputError, match=r"a\.warc\.gz has no response at byte 0: "):
        explain.capture_of(row(), extracted(str(tmp_path / "a.warc.gz")), recipe)
