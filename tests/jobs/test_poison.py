"""One archive of pages that hang, crash, bloat or lie, each with a good page after it, through the work of extract."""

from __future__ import annotations

import ctypes
import gzip
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from jobs import extract
from jobs.archive.response import Capture
from jobs.page import extraction, guard, urls
from jobs.stage.table import read_rows
from pipeline.recipe import load
from pipeline.storage import Storage

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
PAGE_SECONDS = 1.0
TOLERANCE = 0.2  # CPU seconds: until a busy machine lets the parent look, and the fork of a child
SENTENCES = [
    f"The boats lay close to the wall that morning, and number {n} was the last of them to leave." for n in range(12)
]


def article(name: str, between: str = "") -> str:
    body = between.join(f"<p>{one}</p>" for one in SENTENCES)
    return f"<html><head><title>{name}</title></head><body><article>{body}</article></body></html>"


def member(url: str, body: bytes, kind: str = "text/html; charset=utf-8", head: str = "") -> bytes:
    block = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{head}\r\n".encode() + body
    header = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
    return gzip.compress(f"{header}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n", 1)


def python_loop() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:  # what libraries do
            continue


def memory() -> None:
    bytearray(8 << 30)


# What extraction of a page of that name does.
BEHAVIOUR: dict[str, Callable[[], object]] = {
    "python-loop": python_loop,
    "regex": lambda: re.match(r"(a+)+$", "a" * 64 + "b"),
    "native-loop": lambda: sum(itertools.repeat(1)),  # holds the interpreter: no signal reaches Python
    "native-sleep": lambda: ctypes.PyDLL(None).sleep(1000),
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "memory": memory,
}
ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "lol " * 10}">' for n in range(12))
BOMB = f"<!DOCTYPE html [{ENTITIES}]><html><body><article><p>&e11;</p></article></body></html>"
NESTED = b"<html><body>" + b"<div><b>" * 100_000 + article("x").encode()


def poison() -> dict[str, tuple[bytes, str | None, str | None]]:
    """The record of each page, and reason and detail of its row; None for those that are kept."""
    stopped = f"stopped at the limit of {PAGE_SECONDS:g} CPU seconds"
    pages: dict[str, tuple[bytes, str | None, str | None]] = {}

    def add(
        name: str, reason: str | None, detail: str | None, body: bytes, kind: str = "text/html", head: str = ""
    ) -> None:
        pages[name] = member(f"http://poison.test/{name}", body, kind, head), reason, detail

    large = f"more than {load(DEMO).extract.max_html_bytes} bytes"
    add("200-megabytes", "too_large", large, b"<p>The boats lay close to the wall.</p>" * 5_200_000)
    bomb = gzip.compress(bytes(512 << 20), 1)
    add("gzip-bomb", "too_large", large, bomb, head="Content-Encoding: gzip\r\n")
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(bomb), bomb)
    add("chunked-bomb", "too_large", large, chunk, head="Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n")
    add("nested", "page_timeout", stopped, NESTED)
    add("entities", None, None, BOMB.encode(), "application/xhtml+xml")
    add("nul", None, None, article("nul", "\0" * 100).encode())
    add("surrogates", None, None, article("s").encode().replace(b"</p>", b"\xed\xa0\x80 &#xD800;</p>"))
    utf_16 = article("s").replace("</p>", "\ud800</p>").encode("utf-16-le", "surrogatepass")
    add("surrogates-16", None, None, utf_16, "text/html; charset=utf-16le")
    told = {
        "native-sleep": ("page_timeout", "more than 2 seconds"),
        "abort": ("page_crash", "the process ended with SIGABRT"),
        "segfault": ("page_crash", "the process ended with SIGSEGV"),
        "memory": ("page_memory", "more than 2 GiB"),
    }
    for name in BEHAVIOUR:
        reason, detail = told.get(name, ("page_timeout", stopped))
        add(name, reason, detail, article(f"poison:{name}:").encode())
    return pages


def spent() -> float:
    """CPU seconds of the children of this process, of those that ended too."""
    times = os.times()
    alive = sum(guard.cpu_seconds(child.pid) for child in psutil.Process().children())
    return times.children_user + times.children_system + alive


def worked(archive: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The rows that extract makes of an archive, by URL, and its commit."""
    root = archive.parent
    recipe = load(DEMO, {"extract.page_seconds": PAGE_SECONDS}).extract
    np.save(root / "blocked.npy", urls.hashed([]))
    extraction = extract.Extraction(
        Storage(root), "made", recipe, "blocked.npy", urls.terms(recipe.block_list), model=None
    )
    done = list(extraction.work(extract.Warc("0", str(archive), archive.name)))[-1]["commit"]
    rows = {row["url"]: row for row in read_rows(Storage(root), "made/part-0.parquet")}
    return rows, done


def test_each_poison_is_its_own_row_and_every_good_page_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, page = extraction.extract, extract.page

    def behaving(html: str, *others: Any) -> Any:
        marked = re.search("poison:(.+?):", html)
        if marked:
            BEHAVIOUR[marked[1]]()
        return genuine(html, *others)

    costs: dict[str, float] = {}

    def timed(capture: Capture, *others: Any) -> dict[str, Any]:
        monkeypatch.setattr(guard, "_WALL_SECONDS", 2.0 if capture.url.endswith("sleep") else 90.0)
        before = spent()
        row = page(capture, *others)
        costs[capture.url] = spent() - before
        return row

    monkeypatch.setattr(extraction, "extract", behaving)
    monkeypatch.setattr(extract, "page", timed)
    pages = poison()
    archive = tmp_path / "poison.warc.gz"
    with archive.open("wb") as stream:
        for name, (record, _, _) in pages.items():
            stream.write(record + member(f"http://good.test/{name}", article(name).encode()))
    rows, done = worked(archive)
    for name, (_, reason, detail) in pages.items():
        row, good = rows[f"http://poison.test/{name}"], rows[f"http://good.test/{name}"]
        assert (row["reason"], row["detail"]) == (reason, detail), name
        assert (row["text"] is None) == (reason is not None), name
        assert good["reason"] is None and good["text"].split("\n") == SENTENCES, name
    for name in ("nul", "surrogates", "surrogates-16"):
        assert all(one.rstrip(".") in rows[f"http://poison.test/{name}"]["text"] for one in SENTENCES), name
    assert len(rows["http://poison.test/entities"]["text"]) < 100
    assert done["in"] == len(rows) == 2 * len(pages) and done["unreadable"] == []
    assert done["in"] == done["kept"] + sum(done["dropped"].values())
    assert {url: cost for url, cost in costs.items() if cost > PAGE_SECONDS + TOLERANCE} == {}


def test_damage_and_contradicted_digests_are_rows_and_every_other_page_is_read(tmp_path: Path) -> None:
    pages = [member(f"http://good.test/{n}", article(str(n)).encode()) for n in range(6)]
    broken, wrong = bytearray(pages[2]), gzip.decompress(pages[4])
    broken[60] ^= 9
    said = "sha1:" + "A" * 32
    wrong = wrong.replace(b"Content-Length", f"WARC-Payload-Digest: {said}\r\nContent-Length".encode(), 1)
    archive = tmp_path / "a.warc.gz"
    archive.write_bytes(b"".join([*pages[:2], broken, pages[3], gzip.compress(wrong), pages[5][:-9]]))
    rows, done = worked(archive)
    begin = len(pages[0]) + len(pages[1])
    assert {url: row["reason"] for url, row in rows.items() if url != str(archive)} == {
        **{f"http://good.test/{n}": None for n in (0, 1, 3)},
        "http://good.test/4": "digest_mismatch",
    }
    assert rows["http://good.test/4"]["detail"] == f"the record declares {said}, which its bytes do not have"
    assert done["in"] == 6 and done["kept"] == 3
    assert done["dropped"] == {"damaged": 1, "digest_mismatch": 1, "truncated": 1}
    cut, lost = done["unreadable"]
    assert cut["reason"] == "truncated" and cut["offset"] == -1
    assert (lost["reason"], lost["offset"]) == ("damaged", begin)
    assert lost["detail"].startswith(f"{len(broken)} bytes from byte {begin} on: damaged gzip: ")
