"""Files of lines that a user names: gzipped or plain, with a BOM or without; others are refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipeline import lines
from pipeline.errors import InputError

TEXT = "one\n\ntwo \u2028 words\n"


@pytest.mark.parametrize("data", [TEXT.encode(), gzip.compress(TEXT.encode(), mtime=0), TEXT.encode("utf-8-sig")])
def test_lines_are_read_from_each_form(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(data)
    assert list(lines.read(str(tmp_path / "lines"), "")) == [(1, "one"), (3, "two \u2028 words")]


def damaged() -> bytes:
    data = bytearray(gzip.compress(TEXT.encode(), mtime=0))
    data[12] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    "data", [damaged(), gzip.compress(TEXT.encode(), mtime=0)[:-9], b"caf\xe9", TEXT.encode("utf-16")]
)
def test_what_is_no_text_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(data)
    with pytest.raises(InputError, match=r"lines cannot be read as text"):
        list(lines.read(str(tmp_path / "lines"), "name another"))
