"""Where the WARC files are: local files, globs, lists, URLs, or a crawl of Common Crawl.

A list is a text file with one WARC file per line, named `.txt`, `.paths`, `.txt.gz` or `.paths.gz`. Its lines are URLs,
or paths relative to the list; but those of Common Crawl's own lists (of a crawl, of a segment), which begin with
`crawl-data/`, are relative to what precedes `crawl-data/` in the list's URL. A request that a server refuses for now,
breaks off, lets stall, or answers with an error page is repeated, with exponential back-off.
"""

from __future__ import annotations

import http.client
import io
import os
import random
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pyarrow import fs

from pipeline import locations
from pipeline.artifact import Input as ArtifactInput
from pipeline.errors import InputError, ServerError, StorageError
from pipeline.locations import LISTS, file_name
from pipeline.recipe import Input
from pipeline.storage import Storage

_TRIES = 8  # of a request, which take up to two minutes with the waits between them
_LONGEST_WAIT = 60.0  # seconds between two tries
_STALL_SECONDS = 60.0  # without a byte, after which a connection counts as lost
_BLOCK = 1 << 20
_LATER = "run again later: what is done is kept; if it persists, check the URL or the crawl id"
_CONCURRENT = 8  # requests to a server; with more, Common Crawl answers 503
_RETRIED = (403, 429, 500, 502, 503, 504)  # Common Crawl answers 403 and 503 to clients that are too fast


@dataclass(frozen=True)
class Source:
    """One archive. `name`, its file name, identifies it in document ids, wherever the file is; `content` its bytes."""

    location: str
    name: str
    content: str

    def as_input(self) -> ArtifactInput:
        """As the input of the extract artifact."""
        return ArtifactInput(stage="warc", location=self.location, fingerprint="", content=self.content)

    @classmethod
    def of_input(cls, listed: ArtifactInput) -> Source:
        """The source that `as_input` made this of."""
        return cls(listed.location, file_name(listed.location), listed.content)


def listing_key(recipe: Input) -> str | None:
    """Identifies the list of a published crawl's files, which never change; None for the user's own files."""
    return f"{locations.base()} {recipe.crawl} {recipe.max_warcs}" if recipe.crawl else None


def find(recipe: Input) -> list[Source]:
    """The archives that a recipe names, in order of location.

    Raises `InputError` where a pattern matches nothing, or two files have the same name.
    """
    entries = [locations.of_crawl(recipe.crawl)] if recipe.crawl else recipe.warcs
    unique = sorted({location for entry in entries for location in _expand(entry)})[: recipe.max_warcs]
    names: dict[str, str] = {}
    for location in unique:
        name = file_name(location)
        if name in names:
            raise InputError(f"{names[name]} and {location} have the same file name", "rename one: ids need it unique")
        names[name] = location
    with ThreadPoolExecutor(_CONCURRENT) as pool:  # a crawl has 90,000 files, each a request
        identities = pool.map(_identity, names.values())
        return [
            Source(location, name, f"{name}:{identity}")
            for (name, location), identity in zip(names.items(), identities, strict=True)
        ]


def _expand(entry: str) -> list[str]:
    """Locations of the archives that a file, glob, URL or list names."""
    if "://" not in entry:
        named = locations.expand(entry)
        return [location for one in named for location in (_expand(one) if "://" in one else [one])]
    file_name(entry)
    if entry.startswith("s3://") and "*" in entry:
        system, pattern = _s3(entry)
        selector = fs.FileSelector(pattern[: pattern.index("*")].rpartition("/")[0], recursive=True)
        matching = sorted(f"s3://{i.path}" for i in system.get_file_info(selector) if fnmatch(i.path, pattern))
        if not matching:
            raise InputError(f"no WARC file matches {entry!r}", "check the bucket and the pattern")
        return [location for one in matching for location in (_expand(one) if one.endswith(LISTS) else [one])]
    if entry.endswith(LISTS):
        return [locations.resolved(entry, line) for line in locations.entries(entry, _get(entry))]
    return [entry]


def _s3(location: str) -> tuple[fs.S3FileSystem, str]:
    """S3 with the settings of the AWS_* variables, and the path in it; anonymous without credentials."""
    credentials = os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_ROLE_ARN")
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))
    options: dict[str, Any] = {"anonymous": not (credentials or (Path.home() / ".aws/credentials").exists())}
    if endpoint.netloc:
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
    return fs.S3FileSystem(**options), location.removeprefix("s3://")


def _identity(location: str) -> str:
    """Identifies the bytes of an archive: sha256 of a local file, size and ETag or date of a URL, size and date on S3.

    Raises `InputError` where a server says neither ETag nor date: a changed file of its size would pass for it.
    """
    if location.startswith("s3://"):
        system, path = _s3(location)
        with _s3_errors(location):
            info = system.get_file_info(path)
        if info.type != fs.FileType.File:
            raise InputError(f"{location} does not exist", "check the bucket and the key")
        return f"{info.size}-{info.mtime_ns}"
    if "://" not in location:
        file = Path(location)
        return Storage(file.parent).sha256(file.name)
    request = urllib.request.Request(location, method="HEAD")
    headers, _ = _request(request)
    identity = headers.get("ETag", "").strip('"') or headers.get("Last-Modified", "")
    if not identity:
        raise InputError(
            f"{location}: the server gives neither ETag nor Last-Modified, so a changed file could not be told",
            "download it, and name the file",
        )
    return "-".join([headers.get("Content-Length", ""), identity])


@contextmanager
def _s3_errors(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{location} cannot be read: {error}", "check the bucket, the key and the credentials"
        ) from error


def local_path(location: str, scratch: Path) -> Path:
    """Path of the archive on this machine, once it is fetched."""
    return Path(location) if "://" not in location else scratch / location.rsplit("/", 1)[-1]


class _ErrorPage(http.client.HTTPException):
    """An error page, served as if it were the file."""


def fetch(location: str, scratch: Path) -> Iterator[int]:
    """Fetch a remote file to `scratch`, resuming where it breaks off. Yields its size so far, per block and per wait.

    Raises `InputError` where it is refused, `ServerError` where it ended early too often, and `InputError` where an
    error page arrives in its place: XML or HTML by its first bytes, or no gzip file though its name ends so. Raises
    `StorageError` where this machine cannot write it.
    """
    if "://" not in location:
        return
    target = local_path(location, scratch)
    for attempt in range(_TRIES):
        have = target.stat().st_size if target.exists() else 0
        try:
            with _response(location, have) as (begins, length, read):
                block = read(_BLOCK)
                if not begins and location.endswith(".gz") and not block.startswith(b"\x1f\x8b"[: len(block)]):
                    raise _ErrorPage("no gzip file")
                if not begins and locations.is_page(block):
                    raise _ErrorPage("a page (XML or HTML)")
                if not begins:
                    _append(target, b"", "wb")
                while block:
                    yield _append(target, block)
                    block = read(_BLOCK)
            if length is None or target.stat().st_size == length:
                return
            raise http.client.HTTPException("it ended early")
        except (OSError, http.client.HTTPException) as error:
            _may_retry(error, location, attempt)
        yield have
        _wait(attempt)
    raise AssertionError("unreachable: the last try raises")


def _append(target: Path, block: bytes, mode: str = "ab") -> int:
    """Append to a file, and return its size. The errors of this disk are not the server's: no other try mends them."""
    try:
        with target.open(mode) as stream:
            stream.write(block)
            return stream.tell()
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error}",
            f"make room in {target.parent}, or set TMPDIR to a folder of another disk",
        ) from error


@contextmanager
def _response(location: str, have: int) -> Iterator[tuple[int, int | None, Callable[[int], bytes]]]:
    """A file from byte `have` on: (offset at which the response begins, length of the whole file, function that reads).

    The response begins at 0 where a server ignores the range.
    """
    if location.startswith("s3://"):
        system, path = _s3(location)
        with system.open_input_file(path) as stream:
            stream.seek(have)
            yield have, int(stream.size()), stream.read
        return
    request = urllib.request.Request(location, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_STALL_SECONDS) as response:
        if response.status == 206:
            total = re.fullmatch(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if total is None:
                raise http.client.HTTPException(f"asked for bytes from {have} on, got others")
            yield have, int(total[1]), response.read
        else:
            declared = response.headers.get("Content-Length")
            yield 0, int(declared) if declared else None, response.read


def open_at(location: str, offset: int, size: int) -> BinaryIO:
    """At most `size` bytes of an archive from `offset` on, as a file to read."""
    if "://" not in location:
        stream = Path(location).open("rb")  # noqa: SIM115  the caller closes it
        stream.seek(offset)
        return stream
    if location.startswith("s3://"):
        with _s3_errors(location), _response(location, offset) as (_, _, read):
            return io.BytesIO(read(size))
    for attempt in range(_TRIES):
        try:
            with _response(location, offset) as (begins, length, read):
                for start in range(begins, offset, _BLOCK):  # where the server ignores the range
                    read(min(_BLOCK, offset - start))
                data = read(size)
            if length is None or len(data) == min(size, length - offset):
                return io.BytesIO(data)
            raise http.client.HTTPException("it ended early")
        except (OSError, http.client.HTTPException) as error:
            _may_retry(error, location, attempt)
            _wait(attempt)
    raise AssertionError("unreachable: the last try raises")


def _request(request: urllib.request.Request) -> tuple[Message, bytes]:
    """Headers and whole body of a response."""
    for attempt in range(_TRIES):
        try:
            with urllib.request.urlopen(request, timeout=_STALL_SECONDS) as response:
                return response.headers, response.read()
        except (OSError, http.client.HTTPException) as error:
            _may_retry(error, request.full_url, attempt)
            _wait(attempt)
    raise AssertionError("unreachable: the last try raises")


def _get(url: str) -> bytes:
    """The bytes of a list, fetched as an archive is."""
    if url.startswith("s3://"):
        _identity(url)  # fails at once for a wrong key, not after all tries
    with tempfile.TemporaryDirectory() as scratch:
        for _ in fetch(url, Path(scratch)):
            pass
        return local_path(url, Path(scratch)).read_bytes()


def _may_retry(error: OSError | http.client.HTTPException, location: str, attempt: int) -> None:
    """Raise our error where a further try is useless, or this was the last one."""
    if isinstance(error, urllib.error.HTTPError) and error.code not in _RETRIED:
        raise InputError(f"{location} cannot be fetched: {error}", "check the URL or the crawl id") from error
    if attempt < _TRIES - 1:
        return
    if isinstance(error, _ErrorPage):
        raise InputError(f"{location} answers with {error}", "check the URL in a browser") from error
    raise ServerError(f"{location} cannot be fetched: {error}", _LATER) from error


def _wait(attempt: int) -> None:
    """Exponential back-off with full jitter: clients that failed together do not come back together."""
    time.sleep(random.uniform(0, min(_LONGEST_WAIT, 2.0**attempt)))
