"""Read the captures of a WARC or ARC file with warcio."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed


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
                    url=(record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> "),
                    date=record.rec_headers.get_header("WARC-Date") or "",
                    status=_status(record.http_headers.get_statuscode()),
                    content_type=record.http_headers.get_header("Content-Type") or "",
                    payload=payload if len(payload) <= max_bytes else None,
                    length=max(len(payload), record.length or 0),
                    languages=None,
                )
                continue
            skipped[record.rec_type or "unknown"] += 1
            if record.rec_type == "metadata" and waiting is not None:
                url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
                if url == waiting.url:
                    languages = _languages(record.content_stream().read(1 << 20))
                    yield Capture(**{**waiting.__dict__, "languages": languages})
                    waiting = None
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
