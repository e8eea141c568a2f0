"""Archives that are damaged, and records that are not what they say: all else is read, and what is lost is told."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import random
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import brotli
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.archive import repair, warc
from jobs.archive.response import Capture
from jobs.archive.warc import Lost

PAGES = 100
DATA = Path(__file__).parents[3] / "shared" / "data"
random.seed(3)
WORDS = [random.randbytes(6).hex() for _ in range(4000)]


def record(url: str, body: bytes, head: str = "", length: int | None = None, more: str = "") -> bytes:
    """A response. `head`: further HTTP headers, `more`: further WARC headers, each line ended."""
    block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{head}\r\n".encode() + body
    length = len(block) if length is None else length
    header = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n{more}"
    return f"{header}Content-Length: {length}\r\n\r\n".encode() + block + b"\r\n\r\n"


def text(n: int) -> bytes:
    return f"<html>{n} {' '.join(random.Random(n).sample(WORDS, 300))}\n\nthe end</html>".encode()


RECORDS = [record(f"http://x.test/{n}", text(n)) for n in range(PAGES)]
MEMBERS = [gzip.compress(one, mtime=0) for one in RECORDS]


def read(data: bytes, most: int = 1 << 20) -> tuple[list[Capture], list[Lost], str]:
    found: list[Capture] = []
    lost: list[Lost] = []
    try:
        found.extend(warc.captures(io.BytesIO(data), most, Counter(), lost))
    except (warc.Truncated, warc.NotWarc) as error:
        return found, lost, f"{type(error).__name__}: {error}"
    return found, lost, ""


def expected(parts: Sequence[bytes], bad: set[int]) -> tuple[list[tuple[int, str, bytes]], list[tuple[int, int]]]:
    """The pages that are left, and the ranges that are lost, neighbours as one."""
    starts = [0, *accumulate(map(len, parts))]
    left = [(starts[n], f"http://x.test/{n}", text(n)) for n in range(len(parts)) if n not in bad]
    lost: list[tuple[int, int]] = []
    for n in sorted(bad):
        if lost and sum(lost[-1]) == starts[n]:
            lost[-1] = lost[-1][0], lost[-1][1] + len(parts[n])
        else:
            lost.append((starts[n], len(parts[n])))
    return left, lost


def flipped(at: int) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = at % len(data)
        return data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]

    return flip


def check(parts: Sequence[bytes], bad: set[int], damage: Callable[[bytes], bytes]) -> None:
    damaged = [damage(part) if n in bad else part for n, part in enumerate(parts)]
    found, lost, end = read(b"".join(damaged))
    left, ranges = expected(damaged, bad)
    assert [(one.offset, one.url, one.payload) for one in found] == left
    assert [(one.offset, one.length) for one in lost] == ranges
    assert end == "" and all(one.why for one in lost)


BAD = [{0}, {10}, {10, 11}, {3, 50, 98}, {0, 1, 2, 40, 41, 90}]
DAMAGE = {
    "its magic number": flipped(0),
    "its flags": flipped(3),
    "its first block": flipped(12),
    "its middle": lambda data: flipped(len(data) // 2)(data),
    "its checksum": flipped(-8),
    "its size": flipped(-2),
    "zeros": lambda data: data[:200] + bytes(500) + data[700:],
    "a hole": lambda data: data[:200] + data[700:],
    "its end gone": lambda data: data[:-40],
    "all of it": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_gzip_members_cost_no_other_page(bad: set[int], damage: str) -> None:
    check(MEMBERS, bad, DAMAGE[damage])


@given(st.sets(st.integers(0, PAGES - 2), min_size=1, max_size=12), st.integers(30, 1000), st.integers(1, 255))
def test_any_bytes_changed_in_any_members_cost_those_only(bad: set[int], at: int, change: int) -> None:
    check(MEMBERS, bad, lambda data: data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])


def test_a_last_member_with_a_wrong_checksum_is_lost_and_nothing_is_cut() -> None:
    found, lost, end = read(b"".join(MEMBERS[:9]) + flipped(-8)(MEMBERS[9]))
    size = sum(map(len, MEMBERS[:9]))
    assert len(found) == 9 and end == ""
    why = "damaged gzip: Error -3 while decompressing data: incorrect data check"
    assert lost == [Lost(size, len(MEMBERS[9]), why)]


def test_a_damaged_member_and_a_cut_one_are_both_told() -> None:
    data = b"".join([*MEMBERS[:3], flipped(300)(MEMBERS[3]), *MEMBERS[4:10], MEMBERS[10][:-30]])
    found, lost, end = read(data)
    assert [one.url[-1] for one in found] == list("012456789")
    assert [one.offset for one in lost] == [sum(map(len, MEMBERS[:3]))]
    assert end == f"Truncated: the file ends within a gzip member; not read from byte {sum(map(len, MEMBERS[:10]))} on"


def test_a_gzip_file_within_a_damaged_record_is_taken_for_none() -> None:
    inner = gzip.compress(b"no record, but words", mtime=0) + b"\x1f\x8b\x08" * 50
    member = gzip.compress(record("http://x.test/1", inner), compresslevel=0, mtime=0)
    found, lost, end = read(MEMBERS[0] + flipped(-8)(member) + MEMBERS[2])
    assert [one.url for one in found] == ["http://x.test/0", "http://x.test/2"]
    assert [(one.offset, one.length) for one in lost] == [(len(MEMBERS[0]), len(member))] and end == ""


def relabelled(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new, 1)


def declared(change: int) -> Callable[[bytes], bytes]:
    """Another Content-Length."""

    def changed(data: bytes) -> bytes:
        head, _, rest = data.partition(b"Content-Length: ")
        number, _, rest = rest.partition(b"\r\n")
        return head + b"Content-Length: " + str(int(number) + change).encode() + b"\r\n" + rest

    return changed


PLAIN_DAMAGE = {
    "version": relabelled(b"WARC/1.0", b"WARC/x.0"),
    "first line": relabelled(b"WARC/1.0", b"\x80ARC/1.0"),
    "no type": relabelled(b"WARC-Type: response\r\n", b"\r\n"),
    "no length": relabelled(b"Content-Length:", b"Content-Lengzh:"),
    "length of letters": relabelled(b"Content-Length: ", b"Content-Length: x"),
    "negative length": relabelled(b"Content-Length: ", b"Content-Length: -"),
    "no URL": relabelled(b"WARC-Target-URI:", b"WARC-Target-URX:"),
    "too short": declared(-50),
    "too long by a little": declared(30),
    "too long by several records": declared(3 * len(RECORDS[0]) + 700),
    "longer than the file": declared(1 << 40),
    "up to an empty line of the next": declared(len(RECORDS[0]) - len(b"\n\nthe end</html>\r\n\r\n")),
    "a header without end": relabelled(b"WARC-Date:", b"X: " + b"x" * (2 << 20) + b"\r\nWARC-Date:"),
}


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("damage", PLAIN_DAMAGE)
def test_damaged_records_of_a_plain_archive_cost_no_other_page(bad: set[int], damage: str) -> None:
    check(RECORDS, bad, PLAIN_DAMAGE[damage])


def arc(n: int) -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + text(n)
    return f"http://x.test/{n} 1.2.3.4 20240101000000 text/html {len(block)}\n".encode() + block + b"\n"


@pytest.mark.parametrize("packed", [bytes, lambda data: gzip.compress(data, mtime=0)], ids=["plain", "gzip"])
def test_arc_files_are_read_around_damage_too(packed: Callable[[bytes], bytes]) -> None:
    head = b"1 0 Test\nURL IP-address Archive-date Content-type Archive-length\n\n"
    first = f"filedesc://a.arc 0.0.0.0 20240101000000 text/plain {len(head)}\n".encode() + head
    parts = [packed(first), *(packed(arc(n)) for n in range(9))]
    broken = packed(arc(4)).replace(b" text/html ", b" text/html x") if packed is bytes else flipped(99)(parts[5])
    found, lost, end = read(b"".join([*parts[:5], broken, *parts[6:]]))
    assert [one.payload for one in found] == [text(n) for n in range(9) if n != 4]
    assert [(one.offset, one.length) for one in lost] == [(sum(map(len, parts[:5])), len(broken))]
    assert end == ""


def test_an_archive_that_is_gzipped_as_a_whole_is_read() -> None:
    data = gzip.compress(b"".join(RECORDS[:9]), mtime=0)
    found, lost, end = read(data)
    starts = [0, *accumulate(map(len, RECORDS[:8]))]
    assert [(one.offset, one.payload) for one in found] == [(at, text(n)) for n, at in enumerate(starts)]
    assert (lost, end) == ([], "")
    several, _, end = read(gzip.compress(b"".join(RECORDS[:5])) + gzip.compress(b"".join(RECORDS[5:9])))
    assert [one.payload for one in several] == [one.payload for one in found] and end == ""
    damaged = gzip.compress(b"".join([*RECORDS[:4], PLAIN_DAMAGE["no length"](RECORDS[4]), *RECORDS[5:9]]))
    found, lost, end = read(damaged)
    assert [one.url[-1] for one in found] == list("01235678") and len(lost) == 1 and end == ""
    found, _, end = read(data[:-2000])
    assert [one.url[-1] for one in found] == list("01234567")[: len(found)] and len(found) > 3
    assert end.startswith("Truncated: ")


def test_a_member_of_several_records_within_an_archive_is_lost_alone() -> None:
    found, lost, end = read(MEMBERS[0] + gzip.compress(RECORDS[1] + RECORDS[2], mtime=0) + MEMBERS[3])
    assert [one.url[-1] for one in found] == ["0", "3"] and end == ""
    assert [one.why for one in lost] == ["several records in a gzip member"]


@pytest.mark.parametrize("date", ["199609231421", "19960923142103", "19960923142103123"])
def test_records_of_old_arc_files_begin_with_dates_of_other_lengths(date: str) -> None:
    data = b"".join(arc(n).replace(b"20240101000000", date.encode()) for n in range(3))
    found, lost, end = read(data.replace(b"http://", b"HTTP://"))
    assert [one.payload for one in found] == [text(n) for n in range(3)] and (lost, end) == ([], "")
    assert found[0].date.startswith("1996-09-23T14:21")


def test_memory_stays_flat_however_much_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    with path.open("wb") as stream:
        stream.write(MEMBERS[0] + MEMBERS[1][:-20])
        stream.seek(300 << 20)
        stream.write(MEMBERS[2])
    tracemalloc.start()
    with path.open("rb") as stream:
        lost: list[Lost] = []
        assert [one.url[-1] for one in warc.captures(stream, 1 << 20, None, lost)] == ["0", "2"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert [(one.offset, one.length) for one in lost] == [(len(MEMBERS[0]), (300 << 20) - len(MEMBERS[0]))]


def test_a_file_made_to_be_read_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "_AGAIN_BYTES", 1 << 20)
    data = b"".join(map(declared(1 << 40), RECORDS))
    found, lost, end = read(data)
    assert found == lost == []
    assert end.startswith("Truncated: ") and "damaged in too many places, not read from byte 0 on" in end


BODY = text(0)


def packed(body: bytes, encoding: str) -> bytes:
    if encoding == "br":
        return brotli.compress(body, quality=4)
    return gzip.compress(body, 1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)


def chunked(body: bytes, size: int = 1000) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_encoded_bodies_are_decoded_and_bombs_are_not_inflated(encoding: str) -> None:
    head = f"Content-Encoding: {encoding}\r\n"
    bomb = packed(bytes(100 << 20), encoding)
    pages = [
        record("http://x.test/0", packed(BODY, encoding), head),
        record("http://x.test/1", chunked(packed(BODY, encoding)), head + "Transfer-Encoding: chunked\r\n"),
        record("http://x.test/2", BODY, head),  # not encoded, whatever it says
        record("http://x.test/3", bomb, head),
        record("http://x.test/4", chunked(bomb, len(bomb)), head + "Transfer-Encoding: chunked\r\n"),
    ]
    tracemalloc.start()
    found, lost, end = read(b"".join(pages), 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [one.payload for one in found] == [BODY, BODY, BODY, None, None]
    assert (lost, end) == ([], "")
    assert peak < 40 << 20


HALVES = gzip.compress(BODY[:900], mtime=0) + gzip.compress(BODY[900:], mtime=0)
ZSTD = pa.compress(BODY, "zstd", asbytes=True)


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (chunked(BODY), "Transfer-Encoding: Chunked\r\n"),
        (chunked(BODY), "transfer-encoding:  CHUNKED \r\n"),
        (chunked(packed(BODY, "gzip")), "Transfer-Encoding: gzip, chunked\r\n"),
        (chunked(packed(BODY, "gzip")), "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
        (packed(BODY, "gzip"), "Content-Encoding: x-gzip\r\n"),
        (packed(BODY, "gzip"), "Content-Encoding: GZip \r\n"),
        (packed(packed(BODY, "deflate"), "gzip"), "Content-Encoding: deflate, gzip\r\n"),
        (packed(BODY, "gzip"), "Content-Encoding: identity, gzip, gzip\r\n"),
        (HALVES, "Content-Encoding: gzip\r\n"),
        (HALVES + b"\x1f\x8b garbage", "Content-Encoding: gzip\r\n"),
        (HALVES + bytes(99), "Content-Encoding: gzip\r\n"),
        (ZSTD, "Content-Encoding: zstd\r\n"),
        (chunked(ZSTD), "Content-Encoding: zstd\r\nTransfer-Encoding: chunked\r\n"),
        (BODY, "Content-Encoding: zstd\r\n"),
    ],
)
def test_codings_are_read_as_servers_write_them(body: bytes, head: str) -> None:
    found, lost, end = read(record("http://x.test/0", body, head))
    assert ([one.payload for one in found], lost, end) == ([BODY], [], "")


def test_a_body_of_very_many_members_is_soon_read() -> None:
    body = gzip.compress(b"x", mtime=0) * 20_000
    (found,), _, _ = read(record("http://x.test/0", body, "Content-Encoding: gzip\r\n"))
    assert found.payload == b"x" * 20_000


def sha1(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data).digest()).decode()


ZIPPED, GZIP, CHUNKED = gzip.compress(BODY, mtime=0), "Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n"
BLOCK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + BODY
BINARY = hashlib.sha256(BODY).digest()
OTHER = sha1(b"other")


@pytest.mark.parametrize(
    ("body", "head", "digests", "told"),
    [
        (BODY, "", f"WARC-Payload-Digest: {sha1(BODY)}", None),
        (BODY, "", f"WARC-Payload-Digest: {sha1(BODY).lower()}", None),
        (BODY, "", f"WARC-Payload-Digest: sha-256:{BINARY.hex()}", None),
        (BODY, "", f"WARC-Payload-Digest: sha256:{base64.b64encode(BINARY).decode()}", None),
        (BODY, "", f"WARC-Payload-Digest: sha256:{base64.urlsafe_b64encode(BINARY).decode()}", None),
        (BODY, "", f"WARC-Block-Digest: {sha1(BLOCK)}", None),
        (BODY, "", f"WARC-Payload-Digest: {OTHER}\r\nWARC-Block-Digest: {sha1(BLOCK)}", None),
        (BODY, "", f"WARC-Payload-Digest: {sha1(BODY)}\r\nWARC-Block-Digest: {OTHER}", None),
        (chunked(ZIPPED), GZIP + CHUNKED, f"WARC-Payload-Digest: {sha1(chunked(ZIPPED))}", None),
        (chunked(ZIPPED), GZIP + CHUNKED, f"WARC-Payload-Digest: {sha1(ZIPPED)}", None),
        (chunked(ZIPPED), GZIP + CHUNKED, f"WARC-Payload-Digest: {sha1(BODY)}", None),
        (BODY, "", "WARC-Payload-Digest: sha1:abc", None),
        (BODY, "", "WARC-Payload-Digest: crc32:abcdefgh", None),
        (BODY, "", f"WARC-Payload-Digest: {OTHER}\r\nWARC-Truncated: length", None),
        (BODY, "", f"WARC-Payload-Digest: {OTHER}", OTHER),
        (BODY, "", f"WARC-Payload-Digest: {OTHER}\r\nWARC-Block-Digest: {OTHER}", OTHER),
        (BODY, "", f"WARC-Block-Digest: {OTHER}\r\nWARC-Truncated: length", OTHER),
        (ZIPPED, GZIP, f"WARC-Payload-Digest: {OTHER}", OTHER),
    ],
)
def test_a_digest_is_contradicted_where_no_form_of_the_body_has_it(
    body: bytes, head: str, digests: str, told: str | None
) -> None:
    found, _, end = read(record("http://x.test/0", body, head, more=digests + "\r\n"))
    assert [(one.payload, one.mismatch) for one in found] == [(BODY, told)] and end == ""


@pytest.mark.skipif(not DATA.exists(), reason="the shared archives are not beside this repository")
def test_no_archive_of_another_writer_contradicts_itself_but_one_made_so() -> None:
    wrong = []
    for path in sorted([*(DATA / "crawl").glob("part-00*"), *(DATA / "warc").glob("*/*arc*")]):
        if path.suffix != ".lz4":
            found, _, _ = read(path.read_bytes())
            wrong += [path.name for one in found if one.mismatch]
    assert wrong == ["example-wrong-chunks.warc.gz"]


def test_what_is_no_warc_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.warc.gz"
    path.write_bytes(b"<html>this is no archive</html>" * 10)
    with path.open("rb") as stream, pytest.raises(warc.NotWarc):
        list(warc.captures(stream, 1000))
