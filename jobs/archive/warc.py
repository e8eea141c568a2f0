"""Read the captures of a WARC or ARC file with warcio, around what is damaged in it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from jobs.archive.reader import HEADER_BYTES, Archive, Cut, Damaged
from jobs.archive.repair import Search, kind_at
from jobs.archive.response import Capture, capture

_WHY_CHARS = 200  # warcio's messages hold what was read


@dataclass(frozen=True)
class Lost:
    """Bytes of the file of which nothing could be read: from `offset` on, `length` of them."""

    offset: int
    length: int
    why: str

    def __str__(self) -> str:
        return f"{self.length} bytes from byte {self.offset} on: {self.why}"


class Truncated(Exception):
    """The file could not be read to its end; what was read before stays valid."""


class NotWarc(Exception):
    """The file holds no WARC or ARC record."""


@dataclass(frozen=True)
class _Record:
    """A record that was read to its end; `body` is that of a metadata record."""

    type: str
    offset: int
    url: str
    capture: Capture | None
    body: bytes
    short: bool  # it holds less than it declares, though its gzip member is whole


def captures(
    stream: BinaryIO, max_bytes: int, skipped: Counter[str] | None = None, lost: list[Lost] | None = None
) -> Iterator[Capture]:
    """Yield the responses of an archive in order; other records are counted in `skipped` by type.

    A metadata record belongs to the response before it (Common Crawl writes them so). A damaged record is left out:
    reading goes on where the next one begins, and `lost` tells of the bytes between. No more of a record than
    `max_bytes` and 1 MiB is held. Raises `NotWarc` where not one record could be read, `Truncated` where the file ends
    within a record.
    """
    skipped = Counter() if skipped is None else skipped
    waiting: Capture | None = None
    short = False
    try:
        for record in _records(stream, max_bytes, [] if lost is None else lost):
            if record.capture is not None:
                if waiting is not None:
                    yield waiting
                waiting, short = record.capture, record.short
                continue
            skipped[record.type] += 1
            short = False  # others follow: only the response's Content-Length was wrong
            if record.type == "metadata" and waiting is not None and record.url == waiting.url:
                yield replace(waiting, languages=_languages(record.body))
                waiting = None
    except Truncated:
        if waiting is not None:
            yield waiting
        raise
    if waiting is not None:
        yield waiting
    if short:
        raise Truncated("the file ends within its last response")


def _records(stream: BinaryIO, max_bytes: int, lost: list[Lost]) -> Iterator[_Record]:
    """The records that are whole; `lost`, `NotWarc` and `Truncated` as in `captures`."""
    search, at = Search(stream), stream.tell()
    gap: tuple[int, str] | None = None
    kind = kind_at(stream, at)
    if kind is None:
        gap = at, "it does not begin with a WARC or ARC record"
        found = search.begin(at)
        if found is None:
            raise NotWarc(gap[1])
        at, kind = found
    seen = False
    while True:
        stream.seek(at)
        archive = Archive(stream, kind)
        held: _Record | None = None
        inside = False  # a record, beyond its header
        try:
            for found_record in archive:
                inside, at, seen = True, archive.begins, seen or gap is None
                record = _read(archive, found_record, at, max_bytes)
                if held is not None:
                    yield held
                if gap is not None:
                    lost.append(Lost(gap[0], at - gap[0], gap[1]))
                held, inside, gap, seen = record, False, None, True
            if held is not None:
                yield held
            if not seen:
                raise NotWarc("no WARC or ARC record in it")
            return
        except (MemoryError, NotWarc):
            raise
        except Exception as error:  # warcio raises many kinds
            why = (str(error) or type(error).__name__)[:_WHY_CHARS].strip()
            cut = isinstance(error, Cut) if kind.gzipped else not archive.reader.read(1)
            rest = error.record if isinstance(error, Cut) and gap is None else None
            at, ahead = at if inside else archive.begins, stream.tell()
        # In a plain archive, no header may mean that the record before said too much, and ended within another.
        first = at if held is None or inside or kind.gzipped else held.offset
        place = search.next(first + 1, kind, ahead)
        if place is not None and place < at:
            at, held = first, None
        gap = gap or (at, why)
        if held is not None:
            yield held
        if place is None:
            if not seen:
                raise NotWarc(why)
            if rest is not None:
                yield rest
            if search.given_up:
                raise Truncated(f"{gap[1]}; damaged in too many places, not read from byte {gap[0]} on")
            if cut:
                raise Truncated(f"{gap[1]}; not read from byte {gap[0]} on")
            lost.append(Lost(gap[0], stream.seek(0, io.SEEK_END) - gap[0], gap[1]))
            return
        at = place


def _read(archive: Archive, record: Any, offset: int, max_bytes: int) -> _Record:
    """The record, read to its end. Raises `Damaged` where it is not what it says of itself."""
    is_response, plain = record.rec_type == "response", archive.reader.decompressor is None
    declared = (record.rec_headers.get_header("Content-Length") or "").strip()
    if not declared.isdecimal() and (is_response or (plain and record.length is None)):
        raise Damaged(f"a record of {declared or 'unknown'} length")
    url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
    if is_response and not url:
        raise Damaged("a response without WARC-Target-URI")
    response = capture(archive, record, offset, url, max_bytes) if is_response else None
    body = record.raw_stream.read(HEADER_BYTES) if record.rec_type == "metadata" else b""
    archive.read_to_end()
    short = record.length is not None and record.raw_stream.limit > 0
    found = _Record(record.rec_type or "unknown", offset, url, response, body, short)
    if plain and short:
        raise Cut("the file ends within a record", found)
    return found


def _languages(body: bytes) -> dict[str, Any] | None:
    for line in body.splitlines():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"languages-cld2":
            try:
                found = json.loads(value)
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None
