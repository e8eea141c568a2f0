"""warcio's readers, made to raise where an archive is damaged: its own mistake much of that for the end of the file."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from warcio.archiveiterator import ArchiveIterator
from warcio.bufferedreaders import DecompressingBufferedReader
from warcio.utils import BUFF_SIZE

HEADER_BYTES = 1 << 20  # limit for a record's WARC header, and for its HTTP header
FIRST_LINE: dict[Literal["warc", "arc"], bytes] = {  # a record's: WARC 1.1, section 4; ARC 1.0, `url-record`
    "warc": rb"WARC/\d",
    # Dates of the first crawls have no seconds, and some writers' have milliseconds.
    "arc": rb"[A-Za-z][A-Za-z0-9+.-]*:[^\n]{0,4096} [^ \n]+ \d{12,17} [^ \n]+ -?\d+\r?\n",
}


class Damaged(Exception):
    """The record that is being read is damaged."""


class Cut(Damaged):
    """The file ends within a record; in a plain archive, `record` holds what there is of it."""

    def __init__(self, why: str, record: Any = None) -> None:
        super().__init__(why)
        self.record = record


class Wrapped(Damaged):
    """A gzip member holds several records."""


@dataclass(frozen=True)
class Kind:
    """How an archive is written: one gzip member per record, or uncompressed; as WARC or as ARC."""

    gzipped: bool
    format: Literal["warc", "arc"]


class Reader(DecompressingBufferedReader):  # type: ignore[misc]
    """Raises where a gzip member is damaged or ends early; warcio's own mistakes both for the end of the file."""

    decompressor: Any
    starting_data: bytes | None = None
    begins = 0  # offset of the gzip member
    allowance = HEADER_BYTES  # bytes that further lines may have: limits a record's header

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
            raise Damaged(f"damaged gzip: {error}") from error
        self._fed = True
        return text

    def _process_read(self, data: bytes) -> None:
        if not data and self.decompressor is not None and self._fed and not self.decompressor.eof:
            raise Cut("the file ends within a gzip member")
        super()._process_read(data)

    def readline(self, length: int | None = None) -> bytes:
        line: bytes = self.buff.readline(self.allowance) if self.buff else b""
        if not line.endswith(b"\n"):  # the line continues beyond what is inflated so far
            line += super().readline(self.allowance - len(line))
        self.allowance -= len(line)
        if self.allowance <= 0:
            raise Damaged(f"a header of more than {HEADER_BYTES} bytes")
        return line


class Archive(ArchiveIterator):  # type: ignore[misc]
    """The records from the stream's position on. HTTP headers are not parsed here, but in `jobs.archive.response`."""

    reader: Reader

    def __init__(self, stream: BinaryIO, kind: Kind) -> None:
        super().__init__(stream, no_record_parse=True, arc2warc=True)
        self.reader = Reader(stream, block_size=BUFF_SIZE, decomp_type="gzip" if kind.gzipped else None)
        self.known_format = kind.format
        self._first_line = re.compile(FIRST_LINE[kind.format])

    @property
    def begins(self) -> int:
        """Offset of the record that is being read, or that could not be."""
        return self.reader.begins if self.reader.decompressor else int(self.offset)

    def _next_record(self, next_line: bytes | None) -> Any:
        self.reader.allowance = HEADER_BYTES
        return super()._next_record(next_line)

    def _consume_blanklines(self) -> tuple[bytes | None, int]:
        blank = 0
        while line := self.reader.readline():
            if line.strip():
                if self.reader.decompressor:
                    if self._first_line.match(line):
                        raise Wrapped("several records in a gzip member")
                    raise Damaged("more than declared in a gzip member")
                if not blank and not self._first_line.match(line):
                    raise Damaged("a record that is longer than declared, or shorter")
                return line, blank
            blank += len(line)
        return None, blank
