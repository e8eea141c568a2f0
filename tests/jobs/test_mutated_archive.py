"""Archives edited at random: rows that are whole, and no defect."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from pathlib import Path
from time import process_time

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import extract
from jobs.archive import warc
from jobs.archive.response import Capture
from jobs.page import guard, urls
from pipeline.recipe import load
from tests.jobs.support import PROSE

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"


TAGS = """<html lang="en">|<head>|<title>The pier</title>|<meta charset="utf-8">|<meta http-equiv=refresh content="0">
</head>|<body onload='x()'>|<article>|<div class="content main">|<p>|</p>|<a href="/x?a=1&amp;b=2">|</a>|<br/>|<li>|<ul>
<table>|<tr><td colspan=9>|</table>|<script>if (a < b) { c() }</script>|<style>p { x: "</p>" }</style>|<!-- no|-->
<![CDATA[x]]>|<!DOCTYPE html [<!ENTITY a "&a;">]>|&nbsp;|&#0;|&#x110000;|&#55296;|<svg><math>|<template>|<textarea>
<select><option>|<img src=x alt="Gulls">
<h1>|</h1>|<form>|<iframe srcdoc="<p>">|</article>|</body>|</html>|<b><i></b>"""
PIECES = [*TAGS.replace("\n", "|").split("|"), *PROSE.split(". ")]


def record(kind: str, url: str, block: bytes) -> bytes:
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
    return f"{header}Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A plain archive of three pages, with some slices of it inserted, deleted, replaced or doubled."""
    parts: list[bytes] = []
    for n in range(3):
        html = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=40)))
        encoding = draw(st.sampled_from(["", "Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n"]))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n{encoding}\r\n"
        url = f"http://x.test/{n}"
        parts.append(record("request", url, b"GET / HTTP/1.1\r\n\r\n"))
        parts.append(record("response", url, head.encode() + html.encode()))
        parts.append(record("metadata", url, b'languages-cld2: {"languages": [{"code": "en", "text-covered": 1.0}]}'))
    data = b"".join(parts)
    # Headers are short beside bodies, so most edits are made where one begins.
    begins = [at for mark in (b"WARC/1.0", b"HTTP/1.1", b"Content-", b"\r\n\r\n", b"<") for at in places(data, mark)]
    for _ in range(draw(st.integers(1, 6))):
        at = min(len(data), max(0, draw(st.sampled_from(begins)) + draw(st.integers(-4, 40))))
        size, other = draw(st.integers(0, 60)), draw(st.integers(0, len(data)))
        known = st.sampled_from([b"\r\n", b"\0", b"9", b"-", b"WARC/1.0\r\n", b"<", b'"', b">"])
        new = draw(st.binary(max_size=6) | known)
        edit = draw(st.sampled_from(["insert", "delete", "replace", "double", "copy"]))
        if edit == "insert":
            data = data[:at] + new + data[at:]
        elif edit == "delete":
            data = data[:at] + data[at + size :]
        elif edit == "replace":
            data = data[:at] + new + data[at + len(new) :]
        elif edit == "double":
            data = data[: at + size] + data[at:]
        else:
            data = data[:at] + data[other : other + size] + data[at:]
    return data


def places(data: bytes, mark: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(mark), data)]


@settings(deadline=None, max_examples=200)
@given(mutated())
def test_any_edits_of_an_archive_leave_rows_and_no_defect(data: bytes) -> None:
    blocked, recipe = urls.BlockList(urls.hashed([]), urls.terms(load(DEMO).extract.block_list)), load(DEMO).extract
    lost: list[warc.Lost] = []
    found: list[Capture] = []
    before = process_time()
    with suppress(warc.NotWarc, warc.Truncated):
        found.extend(warc.captures(io.BytesIO(data), 1 << 20, None, lost))
    assert process_time() - before < 1
    for capture in found:
        row = extract.page(
            capture, blocked, recipe, lambda page: guard.timed(lambda: extract.read_page(recipe, None, page), 10)
        )
        assert row.get("reason") not in ("extraction_error", "page_timeout"), row["detail"]
        assert (row.get("text") is None) == (row.get("reason") is not None)
    offsets = [capture.offset for capture in found]
    assert offsets == sorted(set(offsets)) and all(data[at:].lstrip().startswith(b"WARC/") for at in offsets)
    gaps = [(one.offset, one.offset + one.length) for one in lost]
    assert all(0 <= begin < end <= len(data) for begin, end in gaps) and gaps == sorted(gaps)
    assert not [at for at in offsets for begin, end in gaps if begin <= at < end]
