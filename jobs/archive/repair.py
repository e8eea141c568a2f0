"""Where reading resumes in a damaged archive, and inflating one that is gzipped as a whole."""

from __future__ import annotations

import gzip
import re
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from warcio.utils import BUFF_SIZE

from jobs.archive.reader import FIRST_LINE, Kind
from pipeline.errors import StorageError

_AGAIN_BYTES = 1 << 30  # that are read twice, at most: without a limit a hostile file would be read for ever
_BLOCK_BYTES = 1 << 18
_INFLATED_BYTES = 8 << 30  # of an archive that is gzipped as a whole, at most: Common Crawl's hold 5 GB
_LINE_BYTES = 1 << 13  # longest first line of a record
_MEMBER = re.compile(rb"\x1f\x8b\x08")  # RFC 1952, section 2.3.1: magic number, deflate


class Search:
    """Finds the offsets of a damaged archive at which records may begin.

    Finding one can mean reading bytes a second time, of which `_AGAIN_BYTES` are allowed per archive.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, _AGAIN_BYTES

    @property
    def given_up(self) -> bool:
        """Whether too much was read a second time."""
        return self._left < 0

    def begin(self, start: int) -> tuple[int, Kind] | None:
        """The first such offset of a file that does not begin as an archive, and the kind of archive found there."""
        for at in matches(self._stream, start, _MEMBER):
            if not self._may_read(BUFF_SIZE):
                return None
            if kind := kind_at(self._stream, at):
                return at, kind
        kind = Kind(gzipped=False, format="warc")
        offset = self.next(start, kind, start)
        return None if offset is None else (offset, kind)

    def next(self, start: int, kind: Kind, read_to: int) -> int | None:
        """The first offset from `start` on where a record of this kind of archive may begin.

        `read_to`: how far the archive was read before; what lies between is read again.
        """
        pattern = _MEMBER if kind.gzipped else re.compile(rb"(?<=\n)" + FIRST_LINE[kind.format])
        for at in matches(self._stream, start, pattern):
            if not self._may_read(BUFF_SIZE):
                return None
            if not kind.gzipped or kind_at(self._stream, at) == kind:
                return at if self._may_read(read_to - at) else None
        return None

    def _may_read(self, size: int) -> bool:
        self._left -= max(0, size)
        return not self.given_up


def matches(stream: BinaryIO, start: int, pattern: re.Pattern[bytes]) -> Iterator[int]:
    """Offsets of the matches from `start` on; bytes before it are not seen. The caller may move the stream."""
    base, data = start, b""
    while True:
        stream.seek(base + len(data))
        more = stream.read(_BLOCK_BYTES)
        data += more
        end = len(data) - _LINE_BYTES if more else len(data)  # a line that begins later may continue in the next block
        for match in pattern.finditer(data):
            if match.start() >= end:
                break
            yield base + match.start()
        if not more:
            return
        done = max(0, end - 1)  # a pattern may look at the byte before
        base, data = base + done, data[done:]


def kind_at(stream: BinaryIO, at: int) -> Kind | None:
    """The kind of archive whose record begins at this offset, or None.

    warcio itself is too lenient to decide: it takes any line for a record of type "unknown", and any five words for a
    page of an ARC.
    """
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
        if re.match(FIRST_LINE[name], head.lstrip()):
            return Kind(gzipped, name)
    return None


def inflate(stream: BinaryIO, plain: BinaryIO) -> str | None:
    """Write the text of all gzip members to `plain`. Returns why it could not be read to its end, or None."""
    stream.seek(0)
    size = 0
    with gzip.GzipFile(fileobj=stream) as members:
        while True:
            try:
                text = members.read1(_BLOCK_BYTES)  # a part of a block at once: what precedes damage is not lost
            except EOFError:
                return "the file ends within a gzip member"
            except (zlib.error, gzip.BadGzipFile) as error:
                return f"damaged gzip: {error}"
            if not text:
                return None
            size += len(text)
            if size > _INFLATED_BYTES:
                return f"it inflates to more than {_INFLATED_BYTES >> 30} GiB"
            try:
                plain.write(text)
            except OSError as error:
                raise StorageError(
                    f"the inflated copy of an archive cannot be written: {error}",
                    f"make room in {tempfile.gettempdir()}, or set TMPDIR to a folder of another disk",
                ) from error
