"""Pages that a server labels oddly are pages; an archive that gives none counts as one that could not be read."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import pytest

from jobs import extract
from jobs.archive.response import Capture
from jobs.page import urls
from pipeline.errors import InputError
from pipeline.recipe import load
from tests.jobs.conftest import job, of
from tests.jobs.test_warc import flipped, record


@pytest.mark.parametrize(
    ("content_type", "mime"),
    [
        ("text/html, text/html; charset=utf-8", "text/html"),
        ("Text/HTML charset=utf-8", "text/html"),
        (" text/html ;charset=utf-8", "text/html"),
        ("application/xhtml+xml;q=1", "application/xhtml+xml"),
    ],
)
def test_a_page_is_one_however_its_type_is_written(content_type: str, mime: str) -> None:
    recipe = load("recipes/demo.yaml").extract
    blocked = urls.BlockList(urls.hashed([]), urls.terms(recipe.block_list))
    capture = Capture(0, "http://x.test/", "", 200, content_type, b"<p>", 3, None)
    row = extract.page(capture, blocked, recipe, lambda _: {"text": "read"})
    assert (row["mime"], row.get("reason"), row.get("text")) == (mime, None, "read")


def plain(kind: str) -> bytes:
    return (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://x.test/0\r\n"
        "WARC-Date: 2024-01-01T00:00:00Z\r\nContent-Length: 4\r\n\r\ntext\r\n\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("data", "reasons", "detail"),
    [
        (plain("resource") * 6, {"no_response": 1}, "6 other records"),
        (
            flipped(-8)(gzip.compress(record("http://x.test/0", random.Random(1).randbytes(20_000)))),
            {"damaged": 1, "no_response": 1},
            "0 other records",
        ),
    ],
)
def test_an_archive_without_a_response_counts_as_unread(
    data: bytes, reasons: dict[str, int], detail: str, tmp_path: Path
) -> None:
    for name, content in (("bad.warc", data), ("good.warc", record("http://x.test/0", b"<p>short</p>"))):
        (tmp_path / name).write_bytes(content)
    limit = {"extract.max_failed_warcs": 0.4}
    work = job(tmp_path / "root", of(sorted(tmp_path.glob("*.warc")), **limit))
    files = extract.listed(work)
    opened = extract.begin(work, files, extract.identity(work, files))
    assert isinstance(opened, extract.Opened)
    records: dict[str, dict[str, Any]] = {}
    for part in opened.parts:
        *_, last = opened.extraction.work(part)
        records[part.name] = last["commit"]
    bad, good = records.values()
    assert good["unreadable"] == []
    assert bad["dropped"] == reasons
    assert [problem["detail"] for problem in bad["unreadable"] if problem["reason"] == "no_response"] == [detail]
    with pytest.raises(InputError, match=r"1 of 2 files could not be read(.|\n)*bad\.warc: no_response"):
        extract.publish(opened.building, records, 0.0)
