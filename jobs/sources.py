"""Where the WARC files are: local files, globs, lists, URLs, or a crawl of Common Crawl."""

from __future__ import annotations

import glob
import gzip
import http.client
import io
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

from pipeline.artifact import Input as ArtifactInput
from pipeline.errors import InputError
from pipeline.recipe import Input
from pipeline.storage import Storage

COMMON_CRAWL = "https://data.commoncrawl.org"
BASE_VARIABLE = "CRAWL2CHAT_CC_BASE"  # another server of the same layout
_LISTS = (".paths", ".txt", ".paths.gz", ".txt.gz")
_TRIES = 8
_LONGEST_WAIT = 60.0  # seconds
_SLOW_DOWN = (403, 429, 500, 502, 503, 504)  # Common Crawl answers 403 and 503 to clients that are too fast


@dataclass(frozen=True)
class Source:
    """One archive. `name` identifies it in document ids: its file name, not where it lies."""

    location: str
    name: str
    content: str

    def as_input(self) -> ArtifactInput:
        """As the input of the extract artifact."""
        return ArtifactInput(stage="warc", location=self.location, fingerprint="", content=self.content)


def find(recipe: Input) -> list[Source]:
    """The archives a recipe names, in order of location. Raises `InputError` where a pattern matches nothing."""
    if recipe.crawl:
        base = os.environ.get(BASE_VARIABLE, COMMON_CRAWL).rstrip("/")
        index = f"{base}/crawl-data/{recipe.crawl}/warc.paths.gz"
        listed = gzip.decompress(_get(index)).decode().split()
        locations = [f"{base}/{path}" for path in listed]
    else:
        locations = [location for given in recipe.warcs for location in _expand(given)]
    unique = sorted(set(locations))[: recipe.max_warcs]
    names: dict[str, str] = {}
    for location in unique:
        name = location.rsplit("/", 1)[-1]
        if name in names:
            raise InputError(f"{names[name]} and {location} have the same file name", "rename one: ids need it unique")
        names[name] = location
    return [Source(location, name, f"{name}:{_identity(location)}") for name, location in names.items()]


def _expand(given: str) -> list[str]:
    if given.startswith(("http://", "https://")):
        if not given.endswith(_LISTS):
            return [given]
        data = _get(given)
        text = (gzip.decompress(data) if given.endswith(".gz") else data).decode()
        return [urljoin(given, line.strip()) for line in text.splitlines() if line.strip()]
    found = [path for path in sorted(glob.glob(given, recursive=True)) if Path(path).is_file()]
    if not found:
        raise InputError(f"no WARC file matches {given!r}", f"check the path (working folder: {os.getcwd()})")
    if len(found) == 1 and given.endswith(_LISTS):
        data = Path(found[0]).read_bytes()
        text = (gzip.decompress(data) if given.endswith(".gz") else data).decode()
        inside = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return [
            path
            for line in inside
            for path in ([line] if "://" in line else _expand(str(Path(found[0]).parent / line)))
        ]
    return [str(Path(path).resolve()) for path in found]


def _identity(location: str) -> str:
    """What tells the bytes of an archive: sha256 of a local file, size and ETag of a remote one."""
    if "://" not in location:
        path = Path(location)
        return Storage(path.parent).sha256(path.name)
    request = urllib.request.Request(location, method="HEAD")
    with _open(request) as answer:
        return "-".join([answer.headers.get("Content-Length", ""), answer.headers.get("ETag", "").strip('"')])


def local_path(location: str, scratch: Path) -> Path:
    """Where the archive lies on this machine, once it is fetched."""
    return Path(location) if "://" not in location else scratch / location.rsplit("/", 1)[-1]


def fetch(location: str, scratch: Path) -> Iterator[int]:
    """Fetch a remote archive to `scratch`, resumed where it breaks off. Yields bytes at every block and wait."""
    if "://" not in location:
        return
    target = local_path(location, scratch)
    for attempt in range(_TRIES):
        have = target.stat().st_size if target.exists() else 0
        request = urllib.request.Request(location, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                resumed = answer.status == 206
                declared = answer.headers.get("Content-Length")
                length = int(declared) + (have if resumed else 0) if declared else None
                with target.open("ab" if resumed else "wb") as stream:
                    while block := answer.read(1 << 20):
                        stream.write(block)
                        yield stream.tell()
            if length is None or target.stat().st_size == length:
                break
        except (OSError, http.client.HTTPException) as error:
            _may_retry(error, location, attempt)
        yield have
        _wait(attempt)
    else:
        raise InputError(f"{location} ended early {_TRIES} times", "run again later: what is done is kept")
    if location.endswith(".gz") and not target.open("rb").read(2) == b"\x1f\x8b":
        raise InputError(f"{location} answered with something that is no gzip file", "check the URL in a browser")


def open_at(location: str, offset: int, size: int) -> BinaryIO:
    """About `size` bytes of an archive from `offset` on, as a file to read."""
    if "://" not in location:
        stream = Path(location).open("rb")  # noqa: SIM115  the caller closes it
        stream.seek(offset)
        return stream
    with _open(urllib.request.Request(location, headers={"Range": f"bytes={offset}-{offset + size - 1}"})) as answer:
        return io.BytesIO(answer.read())


def _open(request: urllib.request.Request) -> Any:
    for attempt in range(_TRIES):
        try:
            return urllib.request.urlopen(request, timeout=60)
        except (OSError, http.client.HTTPException) as error:
            _may_retry(error, request.full_url, attempt)
            _wait(attempt)
    raise AssertionError("unreachable: the last try raises")


def _get(url: str) -> bytes:
    with _open(urllib.request.Request(url)) as answer:
        return bytes(answer.read())


def _may_retry(error: OSError | http.client.HTTPException, location: str, attempt: int) -> None:
    refused = isinstance(error, urllib.error.HTTPError) and error.code not in _SLOW_DOWN
    if refused or attempt == _TRIES - 1:
        raise InputError(f"{location} cannot be fetched: {error}", "check the URL or the crawl id") from error


def _wait(attempt: int) -> None:
    """Full-jitter back-off."""
    time.sleep(random.uniform(0, min(_LONGEST_WAIT, 2.0**attempt)))
