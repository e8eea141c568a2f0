"""Read the captures of a WARC or ARC file with warcio, around what is damaged in it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import brotli
from warcio.archiveiterator import ArchiveIterator
from warcio.bufferedreaders import BufferedReader, ChunkedDataReader, DecompressingBufferedReader
from warcio.statusandheaders import StatusAndHeaders
from warcio.utils import BUFF_SIZE

HEADER_BYTES = 1 << 20  # of a record, at most: of WARC and of HTTP
_AGAIN_BYTES = 1 << 30  # read a second time, at most, in search of records: else a hostile file is read for ever
_BLOCK_BYTES = 1 << 18
_LINE_BYTES = 1 << 13  # of the line with which a record begins
_WHY_CHARS = 200  # warcio's messages hold what was read
_ENCODINGS = ("gzip", "deflate")  # besides br, which warcio's reader does not get along with
_ALGORITHMS = ("sha1", "md5", "sha256", "sha512")
_MEMBER = re.compile(rb"\x1f\x8b\x08")  # RFC 1952, section 2.3.1: magic number, deflate
_FIRST_LINE: dict[Literal["warc", "arc"], bytes] = {  # of a record: WARC 1.1, section 4; ARC 1.0, `url-record`
    "warc": rb"WARC/\d",
    "arc": rb"[a-z][a-z0-9+.-]*:[^\n]{0,4096} [^ \n]+ \d{14} [^ \n]+ -?\d+\r?\n",
}


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


class _Damaged(Exception):
    pass


class _Cut(_Damaged):
    def __init__(self, why: str, record: _Record | None = None) -> None:
        super().__init__(why)
        self.record = record  # what there is of it, of a plain archive


@dataclass(frozen=True)
class _Kind:
    """Of an archive: one gzip member a record, or none compressed."""

    gzipped: bool
    format: Literal["warc", "arc"]


class _Reader(DecompressingBufferedReader):  # type: ignore[misc]
    """Raises where a gzip member is damaged or ends early; warcio's own takes both for the end of the file."""

    decompressor: Any
    starting_data: bytes | None = None
    begins = 0  # where the gzip member begins
    allowance = HEADER_BYTES  # bytes of lines: a record's header

    def _init_decomp(self, decomp_type: str | None) -> None:
        super()._init_decomp(decomp_type)
        self.begins = self.stream.tell() - len(self.starting_data or b"")
        self._fed = False

    def _decompress(self, data: bytes) -> bytes:
        if self.decompressor is None:
            return data
        try:
            text: bytes = self.decompressor.decompress(data)
        except zlib.error as error:
            raise _Damaged(f"damaged gzip: {error}") from error
        self._fed = True
        return text

    def _process_read(self, data: bytes) -> None:
        if not data and self.decompressor is not None and self._fed and not self.decompressor.eof:
            raise _Cut("the file ends within a gzip member")
        super()._process_read(data)

    def readline(self, length: int | None = None) -> bytes:
        line: bytes = self.buff.readline(self.allowance) if self.buff else b""
        if not line.endswith(b"\n"):  # it goes on beyond what is inflated so far
            line += super().readline(self.allowance - len(line))
        self.allowance -= len(line)
        if self.allowance <= 0:
            raise _Damaged(f"a header of more than {HEADER_BYTES} bytes")
        return line


class _Archive(ArchiveIterator):  # type: ignore[misc]
    """The records from where the stream stands. HTTP headers are left to the reader of the record."""

    reader: _Reader

    def __init__(self, stream: BinaryIO, kind: _Kind) -> None:
        super().__init__(stream, no_record_parse=True, arc2warc=True)
        self.reader = _Reader(stream, block_size=BUFF_SIZE, decomp_type="gzip" if kind.gzipped else None)
        self.known_format = kind.format
        self._first_line = re.compile(_FIRST_LINE[kind.format])

    @property
    def begins(self) -> int:
        """Where the record begins that is being read, or that could not be."""
        return self.reader.begins if self.reader.decompressor else int(self.offset)

    def _next_record(self, next_line: bytes | None) -> Any:
        self.reader.allowance = HEADER_BYTES
        return super()._next_record(next_line)

    def _consume_blanklines(self) -> tuple[bytes | None, int]:
        blank = 0
        while line := self.reader.readline():
            if line.strip():
                if self.reader.decompressor:
                    many = self._first_line.match(line)
                    raise _Damaged(f"{'several records' if many else 'more than declared'} in a gzip member")
                if not blank and not self._first_line.match(line):
                    raise _Damaged("a record that is longer than declared, or shorter")
                return line, blank
            blank += len(line)
        return None, blank


class _Search:
    """Finds the places of a damaged archive at which records may begin."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _AGAIN_BYTES

    @property
    def given_up(self) -> bool:
        """Too much was read a second time."""
        return self._left < 0

    def begin(self, start: int) -> tuple[int, _Kind] | None:
        """Of a file that does not begin as an archive: the first such place, and what kind of archive it is then."""
        for at in _matches(self._stream, start, _MEMBER):
            if not self._may_read(BUFF_SIZE):
                return None
            if kind := _kind_at(self._stream, at):
                return at, kind
        kind = _Kind(gzipped=False, format="warc")
        found = self.next(start, kind, start)
        return None if found is None else (found, kind)

    def next(self, start: int, kind: _Kind, ahead: int) -> int | None:
        """The first place from `start` on where a record of such an archive begins, which was read up to `ahead`."""
        pattern = _MEMBER if kind.gzipped else re.compile(rb"(?<=\n)" + _FIRST_LINE[kind.format])
        for at in _matches(self._stream, start, pattern):
            if not self._may_read(BUFF_SIZE):
                return None
            if not kind.gzipped or _kind_at(self._stream, at) == kind:
                return at if self._may_read(ahead - at) else None
        return None

    def _may_read(self, size: int) -> bool:
        self._left -= max(0, size)
        return not self.given_up


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
    search, at = _Search(stream), stream.tell()
    gap: tuple[int, str] | None = None
    kind = _kind_at(stream, at)
    if kind is None:
        gap = at, "it does not begin with a WARC or ARC record"
        found = search.begin(at)
        if found is None:
            raise NotWarc(gap[1])
        at, kind = found
    seen = False
    while True:
        stream.seek(at)
        archive = _Archive(stream, kind)
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
            cut = isinstance(error, _Cut) if kind.gzipped else not archive.reader.read(1)
            rest = error.record if isinstance(error, _Cut) and gap is None else None
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


def _read(archive: _Archive, record: Any, offset: int, max_bytes: int) -> _Record:
    """The record, read to its end. Raises `_Damaged` where it is not what it says of itself."""
    response, plain = record.rec_type == "response", archive.reader.decompressor is None
    declared = (record.rec_headers.get_header("Content-Length") or "").strip()
    if not declared.isdecimal() and (response or (plain and record.length is None)):
        raise _Damaged(f"a record of {declared or 'unknown'} length")
    url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
    if response and not url:
        raise _Damaged("a response without WARC-Target-URI")
    capture = _capture(archive, record, offset, url, max_bytes) if response else None
    body = record.raw_stream.read(HEADER_BYTES) if record.rec_type == "metadata" else b""
    archive.read_to_end()
    short = record.length is not None and record.raw_stream.limit > 0
    found = _Record(record.rec_type or "unknown", offset, url, capture, body, short)
    if plain and short:
        raise _Cut("the file ends within a record", found)
    return found


def _capture(archive: _Archive, record: Any, offset: int, url: str, max_bytes: int) -> Capture:
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


def _matches(stream: BinaryIO, start: int, pattern: re.Pattern[bytes]) -> Iterator[int]:
    """Where the file matches, from `start` on, of which no byte before is looked at. Others may move the stream."""
    base, data = start, b""
    while True:
        stream.seek(base + len(data))
        more = stream.read(_BLOCK_BYTES)
        data += more
        end = len(data) - _LINE_BYTES if more else len(data)  # what begins later may go on in the next block
        for match in pattern.finditer(data):
            if match.start() >= end:
                break
            yield base + match.start()
        if not more:
            return
        done = max(0, end - 1)  # a pattern may look at the byte before
        base, data = base + done, data[done:]


def _kind_at(stream: BinaryIO, at: int) -> _Kind | None:
    """The archive that begins there: of any line warcio makes a record "unknown", of five words a page of an ARC."""
    stream.seek(at)
    head = stream.read(BUFF_SIZE)
    stream.seek(at)
    gzipped = head.startswith(b"\x1f\x8b")
    if gzipped:
        try:
            head = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, _LINE_BYTES)
        except zlib.error:
            return None
    for name in ("warc", "arc"):
        if re.match(_FIRST_LINE[name], head.lstrip()):
            return _Kind(gzipped, name)
    return None


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
