"""Bytes of a page to text: in the order of WHATWG, and whatever the bytes are."""

from __future__ import annotations

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.page import charset


@pytest.mark.parametrize(
    ("body", "header", "text", "name"),
    [
        ("\ufeffgrün".encode(), "text/html; charset=latin1", "grün", "utf-8"),
        ("grün".encode("cp1252"), "text/html; charset=ISO-8859-1", "grün", "cp1252"),
        ("привет".encode("cp1251"), 'text/html; charset="windows-1251"', "привет", "cp1251"),
        ('<meta charset="shift_jis">日本'.encode("cp932"), "text/html", '<meta charset="shift_jis">日本', "cp932"),
        ("grün".encode(), "text/html", "grün", "utf-8"),
        ("grün".encode("cp1252") + b"....", "", "grün....", "cp1252"),
        ("grün".encode(), "text/html; charset=nonsense", "grün", "utf-8"),
    ],
)
def test_the_order_is_that_of_whatwg(body: bytes, header: str, text: str, name: str) -> None:
    assert charset.decode(body, header) == (text, name)


def test_a_bom_wins_over_the_header_and_the_header_over_meta() -> None:
    meta = b'<meta charset="windows-1251">'
    assert charset.decode(b"\xef\xbb\xbf" + meta, "text/html; charset=latin1")[1] == "utf-8"
    assert charset.decode(meta + b"\xe9", "text/html; charset=latin1") == (meta.decode() + "é", "cp1252")
    assert charset.decode(meta + b"\xe9", "text/html")[1] == "cp1251"
    far = b"<body>" + b" " * 1024 + meta + b"\xe9 cafe"  # beyond the prescan and the head
    assert charset.decode(far, "text/html")[1] == "cp1252"
    assert charset.decode(b'<meta charset="utf-16">\xc3\xa9', "")[0].endswith("é")


META = '<meta charset="windows-1251">'


@pytest.mark.parametrize(
    "page",
    [
        '<!-- <meta charset="koi8-r"> -->' + META,
        '<!--><meta charset="windows-1251"><!-- -->',
        '<meta charset="bogus">' + META,
        '<meta charset="\nwindows-1251\n">',
        "<meta charset=windows-1251 />",
        "<meta name=x charset = 'windows-1251;'>",
        '<meta name="description" content="a page in charset=koi8-r">' + META,
        '<meta name="description" content="a > b">' + META,
        '<script>write("<meta charset=koi8-r><div >")</script>' + " " * 2000 + META,
        '<META HTTP-EQUIV="Content-type" CONTENT="text/html; charset = windows-1251">',
        "<meta content=\"text/html; charset='windows-1251'\" http-equiv=content-type>",
        "<?xml version='1.0' encoding='windows-1251'?>",
        "<head><style>" + "p {}" * 20_000 + "</style>" + META + "</head>",
        "<head></head>" + META,  # within the first 1,024 bytes
    ],
)
def test_a_page_declares_its_charset_as_browsers_read_it(page: str) -> None:
    assert charset.decode(page.encode() + "привет".encode("cp1251"), "text/html")[1] == "cp1251"


@pytest.mark.parametrize("header", ['text/html; charset=" windows-1251 "', "text/html, text/html;charset=windows-1251"])
def test_a_header_declares_it_however_it_is_written(header: str) -> None:
    assert charset.decode("привет".encode("cp1251"), header)[1] == "cp1251"


@pytest.mark.parametrize("part", ["<!--", "<meta ", "<meta x='", "<?xml ", "<script", "a=", "<meta a", "<!-- --"])
def test_no_page_takes_long_to_declare_nothing(part: str) -> None:
    began = process_time()
    charset.decode(f"<meta {part}".encode() + part.encode() * 300_000, "")
    assert process_time() - began < 2


@pytest.mark.parametrize(
    ("label", "codec"),
    [
        ("ISO-8859-1", "cp1252"),
        ("us-ascii", "cp1252"),
        ("gb2312", "gb18030"),
        ("GBK", "gb18030"),
        ("Shift_JIS", "cp932"),
        ("euc-kr", "cp949"),
        ("iso-8859-9", "cp1254"),
        (" UTF8 ", "utf-8"),
        ("nonsense", None),
        ("hex", None),
    ],
)
def test_labels_are_read_as_browsers_read_them(label: str, codec: str | None) -> None:
    assert charset.codec(label) == codec


@given(st.binary(max_size=3000), st.text(max_size=60))
def test_any_bytes_under_any_header_give_text(body: bytes, header: str) -> None:
    text, codec = charset.decode(body, header)
    text.encode("utf-8", "surrogatepass")
    assert codec


@given(st.text(max_size=500))
def test_utf8_is_read_back(text: str) -> None:
    assert charset.decode(text.encode(), "text/html; charset=utf-8")[0] == text.removeprefix("\ufeff")
