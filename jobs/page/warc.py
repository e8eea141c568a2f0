"""Read the captures of a WARC or ARC file with warcio."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.bufferedreaders import DecompressingBufferedReader
from warcio.utils import BUFF_SIZE


@dataclass(frozen=True)
class Capture:
    """One response of a crawl.

    `offset` is that of its record in the file; `languages` is Common Crawl's `languages-cld2` value, parsed, or None.
    `payload` is None where the body is longer than the reader was told to read; `length` is the declared one.
    """

    offset: int
    url: str
    date: str
    status: int
    content_type: str
    payload: bytes | None
    length: int
    languages: dict[str, Any] | None


class Truncated(Exception):
    """The file could not be read to its end; what was read before stays valid."""


class NotWarc(Exception):
    """The file holds no WARC or ARC record."""


class _Damaged(Exception):
    pass


class _Reader(DecompressingBufferedReader):  # type: ignore[misc]
    """Raises where a gzip member is damaged or ends early; warcio's own takes both for the end of the file."""

    decompressor: Any
    _members = 0  # of this file, begun so far

    def _init_decomp(self, decomp_type: str | None) -> None:
        super()._init_decomp(decomp_type)
        self._members += decomp_type is not None
        self._fed = False

    def _decompress(self, data: bytes) -> bytes:
        if self.decompressor is None:
            return data
        try:
            text: bytes = self.decompressor.decompress(data)
        except zlib.error as error:
            if self._members == 1 and not self._fed:  # the file is not compressed
                self.decompressor = None
                return data
            raise _Damaged(f"damaged gzip: {error}") from error
        self._fed = True
        return text

    def _process_read(self, data: bytes) -> None:
        if not data and self.decompressor is not None and self._fed and not self.decompressor.eof:
            raise _Damaged("the file ends within a gzip member")
        super()._process_read(data)


def captures(stream: BinaryIO, max_bytes: int, skipped: Counter[str] | None = None) -> Iterator[Capture]:
    """Yield the responses of an archive in order; other records are counted in `skipped` by type.

    A metadata record belongs to the response before it (Common Crawl writes them so). Raises `NotWarc` where not one
    record could be read, `Truncated` where reading ends early. A response in a damaged gzip member is not yielded.
    """
    if not _begins_as_archive(stream):
        raise NotWarc("it does not begin with a WARC or ARC record")
    skipped = Counter() if skipped is None else skipped
    waiting: Capture | None = None
    seen = 0
    short = False
    try:
        archive = ArchiveIterator(stream, arc2warc=True)
        archive.reader = _Reader(archive.fh, block_size=BUFF_SIZE)
        for record in archive:
            seen += 1
            if record.rec_type == "response":
                if waiting is not None:
                    yield waiting
                    waiting = None  # or an error in this record would yield it again
                payload = record.content_stream().read(max_bytes + 1)
                offset = archive.get_record_offset()  # after the payload: it reads the record to its end
                short = record.raw_stream.limit > 0
                headers = record.http_headers  # none for dns: and the like; such a row has status 0
                waiting = Capture(
                    offset=offset,
                    url=(record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> "),
                    date=record.rec_headers.get_header("WARC-Date") or "",
                    status=_status(headers.get_statuscode()) if headers else 0,
                    content_type=(headers.get_header("Content-Type") if headers else None) or "",
                    payload=payload if len(payload) <= max_bytes else None,
                    length=max(len(payload), record.length or 0),
                    languages=None,
                )
                continue
            skipped[record.rec_type or "unknown"] += 1
            short = False  # others follow: only the response's Content-Length was wrong
            if record.rec_type == "metadata" and waiting is not None:
                url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
                if url == waiting.url:
                    languages = _languages(record.content_stream().read(1 << 20))
                    yield Capture(**{**waiting.__dict__, "languages": languages})
                    waiting = None
    except MemoryError:
        raise
    except Exception as error:  # warcio raises many kinds (AttributeError, on records without a header block)
        if waiting is not None:
            yield waiting
        if not seen:
            raise NotWarc(str(error) or type(error).__name__) from error
        raise Truncated(str(error) or type(error).__name__) from error
    if waiting is not None:
        yield waiting
    if not seen:
        raise NotWarc("no WARC or ARC record in it")
    if short:
        raise Truncated("the file ends within its last response")


def _begins_as_archive(stream: BinaryIO) -> bool:
    """Asked first, since of any line warcio makes a record "unknown", and of one with five words a page of an ARC."""
    start = stream.tell()
    head = stream.read(BUFF_SIZE)
    stream.seek(start)
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, BUFF_SIZE)
        except zlib.error:
            return False
    return head.lstrip().startswith((b"WARC/", b"filedesc:"))


def _status(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


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
