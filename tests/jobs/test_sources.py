"""Finding WARC files: globs, lists, URLs and a crawl, against a server of Common Crawl's layout on this machine."""

from __future__ import annotations

import gzip
import resource
from pathlib import Path
from typing import Any

import pytest

from jobs.archive import sources
from pipeline.errors import InputError, ServerError, StorageError
from pipeline.recipe import Input


def given(*warcs: str, crawl: str | None = None, most: int | None = None) -> Input:
    return Input(warcs=list(warcs), crawl=crawl, max_warcs=most)


def test_globs_and_lists_name_the_same_files_in_the_same_order(tmp_path: Path) -> None:
    for name in ("b.warc", "a.warc", "c.warc"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "warc.paths").write_text("# a list\nc.warc\na.warc\n\nb.warc\n")
    with gzip.open(tmp_path / "all.paths.gz", "wt") as stream:
        stream.write("a.warc\nb.warc\nc.warc\n")
    by_glob = sources.find(given(str(tmp_path / "*.warc")))
    assert [source.name for source in by_glob] == ["a.warc", "b.warc", "c.warc"]
    for one in ("warc.paths", "all.paths.gz"):
        assert sources.find(given(str(tmp_path / one))) == by_glob
    assert sources.find(given(str(tmp_path / "*.warc"), most=2)) == by_glob[:2]
    assert len({source.content for source in by_glob}) == 3


def test_a_glob_of_lists_names_the_files_of_each(tmp_path: Path) -> None:
    for name in ("a.warc", "b.warc", "c.warc"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "one.paths").write_text("a.warc\n")
    (tmp_path / "two.paths").write_text("b.warc\none.paths\n")
    found = sources.find(given(f"{tmp_path}/*.paths", f"{tmp_path}/[bc].*"))
    assert [source.name for source in found] == ["a.warc", "b.warc", "c.warc"]
    (tmp_path / "one.paths").write_text("*.paths\n")
    with pytest.raises(InputError, match=r"the list .*\.paths names itself"):
        sources.find(given(f"{tmp_path}/*.paths"))


def test_without_an_etag_a_file_is_identified_by_its_date_and_without_that_refused(server: Any) -> None:
    server.files["/a.warc"] = b"w"
    date = "Wed, 01 Jan 2025 00:00:00 GMT"
    server.headers = {"Last-Modified": date}
    (found,) = sources.find(given(f"{server.base}/a.warc"))
    assert found.content == f"a.warc:1-{date}"
    server.headers = {}
    with pytest.raises(InputError, match=r"a\.warc: the server gives neither ETag nor Last-Modified"):
        sources.find(given(f"{server.base}/a.warc"))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_record_of_a_remote_archive_is_read_at_its_offset(ranges: bool, server: Any) -> None:
    """A server without ranges sends the file from its beginning on."""
    data = bytes(range(256)) * 8000
    server.files["/a.warc"], server.ranges = data, ranges
    for offset, size in ((0, 10), (1_500_000, 300_000), (len(data) - 5, 100)):
        with sources.open_at(f"{server.base}/a.warc", offset, size) as stream:
            assert stream.read() == data[offset : offset + size]


def test_a_disk_that_cannot_be_written_is_not_the_servers_fault(tmp_path: Path, server: Any) -> None:
    server.files["/a.warc"] = b"w" * 3_000_000
    with pytest.raises(StorageError, match=r"none/a\.warc cannot be written"):
        list(sources.fetch(f"{server.base}/a.warc", tmp_path / "none"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
        with pytest.raises(StorageError, match=r"a\.warc cannot be written: .*File too large"):
            list(sources.fetch(f"{server.base}/a.warc", tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(server.seen) == 2, "it was tried once each"


def test_what_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing-\*\.warc"):
        sources.find(given(str(tmp_path / "nothing-*.warc")))
    (tmp_path / "warc.paths").write_text("gone.warc\n")
    with pytest.raises(InputError, match=r"gone\.warc"):
        sources.find(given(str(tmp_path / "warc.paths")))


@pytest.mark.parametrize(
    "line", ["file:///etc/passwd", "ftp://host/x.warc.gz", "https://host/..", "https://host/x/", "https://host/a\0b"]
)
def test_a_list_of_a_stranger_names_archives_only(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib would open `file:`, and the name becomes one of a file in the folder of downloads."""
    monkeypatch.setattr(sources, "_get", lambda url: line.encode())
    for wrong in (given("https://host/warc.paths"), given(line)):
        with pytest.raises(InputError, match=r"is not read|names no file"):
            sources.find(wrong)


def test_a_password_in_a_list_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_get", lambda url: b"https://me:planted@host/x.warc.gz")
    with pytest.raises(InputError, match=r"a URL at host/x\.warc\.gz holds a password") as caught:
        sources.find(given("https://host/warc.paths"))
    assert "planted" not in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.warc").write_bytes(b"")
    with pytest.raises(InputError, match="same file name"):
        sources.find(given(str(tmp_path / "*/a.warc")))


def test_a_crawl_is_found_by_its_id_and_identified_by_size_and_etag(server: Any) -> None:
    server.files["/crawl-data/CC-MAIN-2025-05/warc.paths.gz"] = gzip.compress(
        b"crawl-data/x/2.warc\ncrawl-data/x/1.warc\n"
    )
    for n in (1, 2):
        server.files[f"/crawl-data/x/{n}.warc"] = b"w" * n
    server.refusals[:] = [503, 403]
    found = sources.find(given(crawl="CC-MAIN-2025-05"))
    assert [source.location for source in found] == [f"{server.base}/crawl-data/x/{n}.warc" for n in (1, 2)]
    assert [source.content for source in found] == ["1.warc:1-tag", "2.warc:2-tag"]


def test_a_crawl_that_does_not_exist_is_named_at_once(server: Any) -> None:
    with pytest.raises(InputError, match="CC-MAIN-1999-01"):
        sources.find(given(crawl="CC-MAIN-1999-01"))
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", ["warc.paths", "warc.paths.gz"])
def test_a_list_is_had_through_any_weather(name: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_STALL_SECONDS", 0.2)
    listed = "".join(f"{n}.warc\n" for n in range(20)).encode()
    server.files = {f"/x/{n}.warc": b"w" for n in range(20)}
    server.files[f"/x/{name}"] = gzip.compress(listed) if name.endswith(".gz") else listed
    weather = iter(["xml", "cut", "503", "stall", "xml", "403", "fine"])
    server.weather = lambda: next(weather)
    found = sources.find(given(f"{server.base}/x/{name}"))
    assert {source.location for source in found} == {f"{server.base}/x/{n}.warc" for n in range(20)}
    assert next(weather, None) is None


@pytest.mark.parametrize("name", ["warc.paths", "warc.paths.gz"])
@pytest.mark.parametrize(
    ("weather", "kind", "told"),
    [("xml", InputError, "answers with (no gzip|a page)"), ("cut", ServerError, "ended early")],
)
def test_a_list_that_stays_broken_is_named(
    name: str, weather: str, kind: type[InputError], told: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_TRIES", 3)
    server.files[f"/x/{name}"], server.weather = gzip.compress(b"a.warc\n" * 99), lambda: weather
    with pytest.raises(InputError, match=rf"x/{name} .*{told}") as error:
        sources.find(given(f"{server.base}/x/{name}"))
    assert type(error.value) is kind and "check the URL" in error.value.remedy
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xef\xbb\xbf\n <html>not here</html>", "is a page"),
        (gzip.compress(b"a.warc\n" * 99)[:20], "cannot be read as text"),
        (b"a\xff.warc\n", "cannot be read as text"),
        (b"# none\n\n", "names no files"),
    ],
    ids=["page", "cut gzip", "Latin-1", "empty"],
)
def test_a_file_that_is_no_list_is_said_to_be_none(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "warc.txt").write_bytes(data)
    with pytest.raises(InputError, match=rf"warc\.txt {told}"):
        sources.find(given(str(tmp_path / "warc.txt")))


@pytest.mark.parametrize("root", ["", "/mirror"])
@pytest.mark.parametrize("folder", ["CC-MAIN-2025-05", "CC-MAIN-2025-05/segments/7"])
def test_common_crawls_own_lists_count_from_its_root(root: str, folder: str, server: Any) -> None:
    paths = [f"{root}/crawl-data/CC-MAIN-2025-05/segments/7/warc/1.warc.gz", f"{root}/crawl-data/{folder}/own.warc.gz"]
    server.files = dict.fromkeys(paths, b"w")
    listed = f"{root}/crawl-data/{folder}/warc.paths.gz"
    server.files[listed] = gzip.compress(f"{paths[0].removeprefix(f'{root}/')}\nown.warc.gz\n".encode())
    found = sources.find(given(server.base + listed))
    assert {source.location for source in found} == {server.base + path for path in paths}


def test_a_copy_of_common_crawls_list_says_how_to_name_it(tmp_path: Path) -> None:
    path = "crawl-data/CC-MAIN-2025-05/segments/7/warc/1.warc.gz"
    (tmp_path / "warc.paths").write_text(f"{path}\n")
    with pytest.raises(InputError, match=r"by URL.*input\.crawl"):
        sources.find(given(str(tmp_path / "warc.paths")))
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(b"w")
    assert [source.location for source in sources.find(given(str(tmp_path / "warc.paths")))] == [str(tmp_path / path)]
