"""Locations of WARC files: what a recipe's input names, as far as the files of this machine tell.

`jobs/archive/sources.py` reads the archives, and the lists that lie on servers. `pipeline/inputs.py` refuses what is
missing before a run starts, by the same reading of globs and lists.
"""

from __future__ import annotations

import codecs
import glob
import os
from pathlib import Path

from pipeline import lines
from pipeline.errors import InputError
from pipeline.storage import holds_password

COMMON_CRAWL = "https://data.commoncrawl.org"
BASE_VARIABLE = "CRAWL2CHAT_CC_BASE"  # another server of the same layout
SCHEMES = ("https", "http", "s3")
LISTS = (".paths", ".txt", ".paths.gz", ".txt.gz")


def base() -> str:
    """The server from which crawls are read, without a slash at its end."""
    return os.environ.get(BASE_VARIABLE, COMMON_CRAWL).rstrip("/")


def of_crawl(crawl: str) -> str:
    """The URL of the list of a crawl's WARC files."""
    return f"{base()}/crawl-data/{crawl}/warc.paths.gz"


def file_name(location: str) -> str:
    """File name of an archive. Raises `InputError` for what a list from elsewhere must not name."""
    scheme, separator, rest = location.partition("://")
    if separator and scheme.lower() not in SCHEMES:  # for file:// urllib would read files of this machine
        raise InputError(f"{location}: {scheme}:// is not read", f"name a file, or a URL of {', '.join(SCHEMES)}")
    if holds_password(location):
        raise InputError(f"a URL at {rest.rpartition('@')[2]} holds a password", "every manifest would repeat it")
    name = location.rsplit("/", 1)[-1]
    if name in ("", ".", "..") or "\0" in location:
        raise InputError(f"{location!r} names no file", "name WARC files")
    return name


def expand(entry: str, within: tuple[str, ...] = ()) -> list[str]:
    """Locations of the archives that a file, glob or list of this machine names; a URL stands for itself.

    `within`: the lists that name it. Raises `InputError` where a pattern matches nothing, or a list is none.
    """
    file_name(entry)
    if "://" in entry:
        return [entry]
    files = [path for path in sorted(glob.glob(entry, recursive=True)) if Path(path).is_file()]
    if not files:
        remedy = f"check the path (working folder: {os.getcwd()})"
        if "/crawl-data/" in f"/{entry}":
            remedy += f"; Common Crawl's lists: by URL ({COMMON_CRAWL}/crawl-data/…), or input.crawl"
        raise InputError(f"no WARC file matches {entry!r}", remedy)
    return [location for file in files for location in _of_file(file, within)]


def _of_file(file: str, within: tuple[str, ...]) -> list[str]:
    """The location of an archive on this machine; of a list, those of the archives that it names."""
    if not file.endswith(LISTS):
        return [str(Path(file).resolve())]
    if file in within:
        raise InputError(f"the list {file} names itself", "name WARC files in it")
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"the list {file} cannot be read: {error.strerror}", "correct its permissions") from error
    listed = [resolved(file, line) for line in entries(file, data)]
    return [location for entry in listed for location in expand(entry, (*within, file))]


def entries(listed: str, data: bytes) -> list[str]:
    """The entries of a list, gzipped or plain. Raises `InputError` where it is no list, or an empty one."""
    remedy = "name a text file, gzipped or plain, with one WARC file per line"
    text = lines.unpacked(data, listed, remedy)
    if is_page(text[:99].encode()):
        raise InputError(f"{listed} is a page (XML or HTML), no list of files", remedy)
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found:
        raise InputError(f"{listed} names no files", remedy)
    return found


def resolved(listed: str, line: str) -> str:
    """The location that a line of the list `listed` stands for."""
    if "://" in line:
        return line
    if "://" not in listed:
        return str(Path(listed).parent / line)
    root, below, _ = listed.rpartition("/crawl-data/")
    return f"{root}/{line}" if below and line.startswith("crawl-data/") else f"{listed.rpartition('/')[0]}/{line}"


def is_page(begin: bytes) -> bool:
    """Whether a file with this beginning is XML or HTML, and so no WARC file, gzip file or list of files."""
    return begin.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"<")
