"""The captures of a WARC or ARC file, read with warcio; what is damaged in it is left out and reported."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from jobs.archive.reader import HEADER_BYTES, Archive, Cut, Damaged, Kind, Wrapped
from jobs.archive.repair import Search, inflate, kind_at
from jobs.archive.response import Capture, capture

_WHY_CHARS = 200  # of an error's message: warcio's quote the bytes that were read


@dataclass(frozen=True)
class Lost:
    """A range of the file in which no record could be read: `length` bytes from `offset` on."""

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
    reading continues where the next one begins, and the bytes between are appended to `lost`. An archive that is
    gzipped as a whole, not record by record, is inflated to a temporary file; offsets are then those in that file.
    Of a record at most `max_bytes` and 1 MiB are read, and three bodies of `max_bytes` held: as stored, without
    transfer encoding, and decoded. Raises `NotWarc` where not one record could be read, `Truncated` where the file ends
    within a record.
    """
    skipped = Counter() if skipped is None else skipped
    response: Capture | None = None  # the newest, until the next record shows whether it has metadata
    short = False
    try:
        for record in _Reading(stream, max_bytes, [] if lost is None else lost).records():
            if record.capture is not None:
                if response is not None:
                    yield response
                response, short = record.capture, record.short
                continue
            skipped[record.type] += 1
            short = False  # another record follows: only the response's Content-Length was wrong
            if record.type == "metadata" and response is not None and record.url == response.url:
                yield replace(response, languages=_languages(record.body))
                response = None
    except Truncated:
        if response is not None:
            yield response
        raise
    if response is not None:
        yield response
    if short:
        raise Truncated("the file ends within its last response")


@dataclass(frozen=True)
class _Damage:
    """Where and why reading stopped: within the record at `offset`, or before it where `in_record` is False."""

    offset: int
    why: str
    in_record: bool  # its header was read
    at_end: bool  # the file ends within it
    wrapped: bool  # it shares its gzip member with others
    read_to: int  # bytes of the file read so far
    beginning: _Record | None  # of a record that the file ends within: what there is of it, in a plain archive


class _Reading:
    """Reads the whole records of an archive, and resumes behind what is damaged.

    Damaged bytes are a gap, which is open until the next record is read whole. In a plain archive a record is held
    back until the header of the next one shows that it ended where it declared.
    """

    def __init__(self, stream: BinaryIO, max_bytes: int, lost: list[Lost]) -> None:
        self._stream, self._max_bytes, self._lost = stream, max_bytes, lost
        self._search = Search(stream)
        self._gap: tuple[int, str] | None = None  # the open one: its offset, and why
        self._held: _Record | None = None
        self._is_archive = False  # whether a record was read, not only bytes that look like one

    def records(self) -> Iterator[_Record]:
        """The records that are whole; `lost`, `NotWarc` and `Truncated` as in `captures`."""
        start, kind = self._first()
        while True:
            # 1. Read to the end of the file, or to the first damage.
            damage = yield from self._until_damage(start, kind)
            if damage is None:
                return
            if damage.wrapped and not damage.offset:  # so it will go on: the archive was gzipped as a whole
                yield from self._unwrapped()
                return
            # 2. Find the next record. The one that is held back may turn out to be part of the damage.
            next_start = self._resume(damage, kind)
            if self._held is not None:
                yield self._held
            # 3. Read on from there, or end.
            if next_start is None:
                yield from self._end(damage)
                return
            start = next_start

    def _first(self) -> tuple[int, Kind]:
        """Where the first record begins, and the kind of the archive."""
        start = self._stream.tell()
        if kind := kind_at(self._stream, start):
            return start, kind
        self._gap = start, "it does not begin with a WARC or ARC record"
        first = self._search.begin(start)
        if first is None:
            raise NotWarc(self._gap[1])
        return first

    def _unwrapped(self) -> Iterator[_Record]:
        """As `records`, of an archive that is gzipped as a whole."""
        with tempfile.TemporaryFile() as plain:
            why = inflate(self._stream, plain)
            plain.seek(0)
            yield from _Reading(plain, self._max_bytes, self._lost).records()
        if why:
            raise Truncated(why)

    def _until_damage(self, start: int, kind: Kind) -> Generator[_Record, None, _Damage | None]:
        """Yield the records from `start` on; returns the damage that ended this, or None at the end of the file."""
        self._stream.seek(start)
        archive = Archive(self._stream, kind)
        self._held, offset, in_record = None, start, False
        try:
            for header in archive:
                offset, in_record = archive.begins, True
                self._is_archive = self._is_archive or self._gap is None
                record = _read(archive, header, offset, self._max_bytes)
                if self._held is not None:
                    yield self._held
                if self._gap is not None:
                    self._lost.append(Lost(self._gap[0], offset - self._gap[0], self._gap[1]))
                self._held, in_record, self._gap, self._is_archive = record, False, None, True
            if self._held is not None:
                yield self._held
            if not self._is_archive:
                raise NotWarc("no WARC or ARC record in it")
            return None
        except (MemoryError, NotWarc):
            raise
        except Exception as error:  # warcio raises many kinds
            return _Damage(
                why=(str(error) or type(error).__name__)[:_WHY_CHARS].strip(),
                at_end=isinstance(error, Cut) if kind.gzipped else not archive.reader.read(1),
                offset=offset if in_record else archive.begins,
                wrapped=isinstance(error, Wrapped),
                in_record=in_record,
                read_to=self._stream.tell(),
                beginning=error.record if isinstance(error, Cut) and self._gap is None else None,
            )

    def _resume(self, damage: _Damage, kind: Kind) -> int | None:
        """Where the next record begins, or None; the gap before it is open then."""
        # Where a plain archive has no header, the record before may have declared too much and ended within another.
        suspect = None if kind.gzipped or damage.in_record else self._held
        lost_from = damage.offset
        next_start = self._search.next((suspect.offset if suspect else lost_from) + 1, kind, damage.read_to)
        if suspect and next_start is not None and next_start < damage.offset:
            self._held, lost_from = None, suspect.offset
        self._gap = self._gap or (lost_from, damage.why)
        return next_start

    def _end(self, damage: _Damage) -> Iterator[_Record]:
        """No record follows the damage: raise, or report the rest of the file as lost."""
        if not self._is_archive:
            raise NotWarc(damage.why)
        if damage.beginning is not None:
            yield damage.beginning
        offset, why = self._gap or (damage.offset, damage.why)
        if self._search.given_up:
            raise Truncated(f"{why}; damaged in too many places, not read from byte {offset} on")
        if damage.at_end:
            raise Truncated(f"{why}; not read from byte {offset} on")
        self._lost.append(Lost(offset, self._stream.seek(0, io.SEEK_END) - offset, why))


def _read(archive: Archive, record: Any, offset: int, max_bytes: int) -> _Record:
    """The record, read to its end. Raises `Damaged` where it is not what its header declares."""
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
    whole = _Record(record.rec_type or "unknown", offset, url, response, body, short)
    if plain and short:
        raise Cut("the file ends within a record", whole)
    return whole


def _languages(body: bytes) -> dict[str, Any] | None:
    """Common Crawl's `languages-cld2` in the body of a metadata record, or None."""
    for line in body.splitlines():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"languages-cld2":
            try:
                languages = json.loads(value)
            except ValueError:
                return None
            return languages if isinstance(languages, dict) else None
    return None
