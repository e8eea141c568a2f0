"""A response of a crawl: its HTTP headers, its decoded body, its digests."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from typing import Any

import brotli
from warcio.bufferedreaders import BufferedReader, ChunkedDataReader
from warcio.statusandheaders import StatusAndHeaders

from jobs.archive.reader import HEADER_BYTES, Archive

_ENCODINGS = ("gzip", "deflate")  # besides br, which warcio's reader does not get along with
_ALGORITHMS = ("sha1", "md5", "sha256", "sha512")


@dataclass(frozen=True)
class Capture:
    """One response of a crawl.

    `offset` is that of its record in the file; `languages` is Common Crawl's `languages-cld2` value, parsed, or None.
    `payload` is None where the body, as it lies there or decoded, is longer than the reader was told to read; `length`
    is the declared one. `mismatch` is the digest in the record's header that the body contradicts, or None.
    """

    offset: int
    url: str
    date: str
    status: int
    content_type: str
    payload: bytes | None
    length: int
    languages: dict[str, Any] | None
    mismatch: str | None = None


def capture(archive: Archive, record: Any, offset: int, url: str, max_bytes: int) -> Capture:
    """The response of a record at `offset`; a body beyond `max_bytes` is not held."""
    block: bytes = record.raw_stream.read(max_bytes + HEADER_BYTES)
    head = io.BytesIO(block[:HEADER_BYTES])
    headers = archive.loader.load_http_headers("response", url, head, len(block))
    body = block[head.tell() :]
    plain, payload = body, body
    if headers and len(body) <= max_bytes:  # none for dns: and the like; such a row has status 0
        plain = _unchunked(body, headers)
        payload = _decoded(plain, headers, max_bytes)
    kept = len(payload) <= max_bytes
    return Capture(
        offset=offset,
        url=url,
        date=record.rec_headers.get_header("WARC-Date") or "",
        status=_status(headers.get_statuscode()) if headers else 0,
        content_type=(headers.get_header("Content-Type") if headers else None) or "",
        payload=payload if kept else None,
        length=max(len(payload), record.length or 0),
        languages=None,
        mismatch=_mismatch(record.rec_headers, block, (body, plain, payload)) if kept else None,
    )


def _unchunked(body: bytes, headers: StatusAndHeaders) -> bytes:
    if headers.get_header("Transfer-Encoding") != "chunked":
        return body
    found: bytes = ChunkedDataReader(io.BytesIO(body)).read()
    return found


def _decoded(body: bytes, headers: StatusAndHeaders, most: int) -> bytes:
    """At least `most` + 1 bytes where there are more; a body that is not encoded as it says stays as it is."""
    encoding = (headers.get_header("Content-Encoding") or "").lower()
    if encoding == "br":
        try:
            unpacked: bytes = brotli.Decompressor().process(body, output_buffer_limit=most + 1)
        except brotli.error:
            return body
        return unpacked
    if encoding not in _ENCODINGS:
        return body
    read: bytes = BufferedReader(io.BytesIO(body), decomp_type=encoding).read(most + 1)
    return read


def _mismatch(headers: StatusAndHeaders, block: bytes, bodies: tuple[bytes, ...]) -> str | None:
    """The digest of a record that none of its bytes have, if it has no other which they do have.

    WARC 1.1, section 5.8 and 5.9. Writers do not agree on whether a payload is digested before or after its transfer
    encoding is removed (webrecorder/warcio issue 74), and that of a truncated response may be of more than is here.
    """
    given: list[tuple[str | None, tuple[bytes, ...]]] = [(headers.get_header("WARC-Block-Digest"), (block,))]
    if not headers.get_header("WARC-Truncated") and not headers.get_header("WARC-Segment-Number"):
        given.insert(0, (headers.get_header("WARC-Payload-Digest"), bodies))
    broken = None
    for digest, candidates in given:
        if digest is None:
            continue
        for data in candidates:
            agrees = _agrees(digest, data)
            if agrees:
                return None
            if agrees is False:
                broken = broken or digest
    return broken


def _agrees(digest: str, data: bytes) -> bool | None:
    """Whether the bytes have this digest; None where it is of a kind not known here."""
    algorithm, _, value = digest.strip().partition(":")
    name = algorithm.lower().replace("-", "")
    if name not in _ALGORITHMS:
        return None
    found, value = hashlib.new(name, data).digest(), value.rstrip("=")
    spelled = {len(found) * 2: found.hex(), -(-len(found) * 8 // 5): base64.b32encode(found).decode().rstrip("=")}
    if len(value) in spelled:
        return value.lower() == spelled[len(value)].lower()
    base_64 = base64.urlsafe_b64encode(found).decode().rstrip("=")
    return value.replace("+", "-").replace("/", "_") == base_64 if len(value) == len(base_64) else None


def _status(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
