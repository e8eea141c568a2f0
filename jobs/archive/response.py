"""A response of a crawl: its HTTP headers, its decoded body, its digests."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from typing import Any

import brotli
import pyarrow as pa
from warcio.bufferedreaders import BufferedReader, ChunkedDataReader
from warcio.statusandheaders import StatusAndHeaders

from jobs.archive.reader import HEADER_BYTES, Archive

_GZIP = b"\x1f\x8b"
_ALGORITHMS = ("sha1", "md5", "sha256", "sha512")


@dataclass(frozen=True)
class Capture:
    """One response of a crawl.

    `offset` is that of its record in the file; `languages` is Common Crawl's `languages-cld2` value, parsed, or None.
    `payload` is the decoded body, or None where it exceeds `max_bytes`, encoded or decoded. `length`, bytes, is that of
    the payload or of the record as declared, whichever is larger. `mismatch` is the digest in the record's header that
    the body does not have, or None.
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
    """The response of a record at `offset`; a body beyond `max_bytes` is dropped."""
    block: bytes = record.raw_stream.read(max_bytes + HEADER_BYTES)
    head = io.BytesIO(block[:HEADER_BYTES])
    headers = archive.loader.load_http_headers("response", url.lower(), head, len(block))  # it looks at the scheme
    body = block[head.tell() :]
    plain, payload = body, body
    if headers and len(body) <= max_bytes:  # records of dns: and the like have no headers; their row has status 0
        transfer = _codings(headers, "transfer-encoding")
        plain = ChunkedDataReader(io.BytesIO(body)).read() if "chunked" in transfer else body
        others = [coding for coding in transfer if coding != "chunked"]
        payload = _decoded(plain, [*_codings(headers, "content-encoding"), *others], max_bytes)
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


def _codings(headers: StatusAndHeaders, name: str) -> list[str]:
    """The codings that a header lists, as they were applied; their names know no case, and `x-gzip` is `gzip`.

    RFC 9112, section 7; RFC 9110, section 8.4.1.
    """
    listed = ",".join(value for key, value in headers.headers if key.lower() == name)
    codings = [coding.partition(";")[0].strip().lower().removeprefix("x-") for coding in listed.split(",")]
    return [coding for coding in codings if coding]


def _decoded(body: bytes, codings: list[str], max_bytes: int) -> bytes:
    """The body without its codings; where it exceeds `max_bytes`, perhaps only its beginning, still longer.

    A body that is not encoded as its header declares stays as it is.
    """
    for coding in reversed(codings):
        if len(body) > max_bytes:
            return body
        if coding == "gzip":
            body = _gunzipped(body, max_bytes)
        elif coding == "deflate":
            body = BufferedReader(io.BytesIO(body), decomp_type="deflate").read(max_bytes + 1)
        elif coding in ("br", "zstd"):  # which warcio's reader handles badly, or not at all
            try:
                if coding == "br":
                    body = brotli.Decompressor().process(body, output_buffer_limit=max_bytes + 1)
                else:
                    body = pa.CompressedInputStream(pa.BufferReader(body), "zstd").read(max_bytes + 1)
            except (brotli.error, OSError):
                pass
    return body


def _gunzipped(body: bytes, max_bytes: int) -> bytes:
    """The text of all gzip members of a body, up to one that is damaged."""
    source, texts, size = io.BytesIO(body), list[bytes](), 0
    while True:
        reader = BufferedReader(source, decomp_type="gzip")
        text = reader.read(max_bytes + 1 - size)
        if texts and reader.decompressor is None:  # it only looked like another member
            break
        texts.append(text)
        size += len(text)
        rest = reader.decompressor.unused_data if reader.decompressor else b""
        if size > max_bytes or not rest.startswith(_GZIP):
            break
        source.seek(-len(rest), io.SEEK_CUR)
    return b"".join(texts)


def _mismatch(headers: StatusAndHeaders, block: bytes, bodies: tuple[bytes, ...]) -> str | None:
    """The digest of a record's header that its bytes do not have; None where they have one of its digests.

    WARC 1.1, section 5.8 and 5.9. `bodies`: as stored, without transfer encoding, decoded. Writers do not agree on
    whether a payload is digested before or after its transfer encoding is removed (webrecorder/warcio issue 74), and
    the payload digest of a truncated response may be that of more bytes than the record holds.
    """
    declared: list[tuple[str | None, tuple[bytes, ...]]] = [(headers.get_header("WARC-Block-Digest"), (block,))]
    if not headers.get_header("WARC-Truncated") and not headers.get_header("WARC-Segment-Number"):
        declared.insert(0, (headers.get_header("WARC-Payload-Digest"), bodies))
    broken = None
    for digest, candidates in declared:
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
    """Whether the bytes have this digest, in hex, base32 or base64; None where its algorithm or length is unknown."""
    algorithm, _, value = digest.strip().partition(":")
    name = algorithm.lower().replace("-", "")
    if name not in _ALGORITHMS:
        return None
    actual, value = hashlib.new(name, data).digest(), value.rstrip("=")
    # The length of the value tells its encoding.
    encoded = {len(actual) * 2: actual.hex(), -(-len(actual) * 8 // 5): base64.b32encode(actual).decode().rstrip("=")}
    if len(value) in encoded:
        return value.lower() == encoded[len(value)].lower()
    base_64 = base64.urlsafe_b64encode(actual).decode().rstrip("=")
    return value.replace("+", "-").replace("/", "_") == base_64 if len(value) == len(base_64) else None


def _status(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
