"""Read the captures of a WARC or ARC file with warcio."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

# An ARC record line: URL, IP address, date, type, length (https://archive.org/web/researcher/ArcFileFormat.php).
_ARC_LINE = re.compile(rb"[a-z]+://?\S.* \d{14} ", re.I)


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


def captures(stream: BinaryIO, max_bytes: int, skipped: Counter[str]) -> Iterator[Capture]:
    """Yield the responses of an archive in order; other records are counted in `skipped` by type.

    A metadata record belongs to the response before it (Common Crawl writes them so). Raises `NotWarc` where not one
    record could be read, `Truncated` where reading ends early.
    """
    _check_first_bytes(stream)
    waiting: Capture | None = None
    seen = 0
    try:
        archive = ArchiveIterator(stream, arc2warc=True)
        for record in archive:
            seen += 1
            if record.rec_type == "response" and record.http_headers is not None:
                if waiting is not None:
                    yield waiting
                payload = record.content_stream().read(max_bytes + 1)
                offset = archive.get_record_offset()  # after the payload: it reads the record to its end
                waiting = Capture(
                    offset=offset,
                    url=_url(record),
                    date=record.rec_headers.get_header("WARC-Date") or "",
                    status=_status(record.http_headers.get_statuscode()),
                    content_type=record.http_headers.get_header("Content-Type") or "",
                    payload=payload if len(payload) <= max_bytes else None,
                    length=max(len(payload), record.length or 0),
                    languages=None,
                )
            else:
                skipped[record.rec_type or "unknown"] += 1
                if record.rec_type == "metadata" and waiting is not None and _url(record) == waiting.url:
                    yield replace(waiting, languages=_languages(record.content_stream().read(1 << 20)))
                    waiting = None
                archive.get_record_offset()
            # warcio ends quietly where a file is cut: the record then has less than it announced.
            if getattr(record.raw_stream, "limit", 0) > 0:
                raise EOFError(f"the file ends inside the record at byte {archive.get_record_offset()}")
    except (ArchiveLoadFailed, EOFError, OSError, ValueError, AttributeError) as error:
        # AttributeError: warcio's own, on records without a header block.
        if waiting is not None:
            yield waiting
        if not seen:
            raise NotWarc(str(error) or type(error).__name__) from error
        raise Truncated(str(error) or type(error).__name__) from error
    if waiting is not None:
        yield waiting
    if not seen:
        raise NotWarc("no record in it")


def _check_first_bytes(stream: BinaryIO) -> None:
    """warcio takes any line for an ARC header: look first whether an archive begins here."""
    head = stream.read(1 << 16)
    stream.seek(0)
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 4096)
        except zlib.error as error:
            raise NotWarc(f"damaged gzip: {error}") from error
    head = head.lstrip()
    if not head.startswith(b"WARC/") and not _ARC_LINE.match(head):
        raise NotWarc(f"it begins with {head[:20]!r}")


def _url(record: Any) -> str:
    return (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")


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
