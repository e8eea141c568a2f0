"""The block list: domains as a sorted array of hashes that all workers map from one file, and words of a URL."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.errors import InputError, MachineError

_UT1 = "url_filterblacklistsv0_3_0.tar.gz"  # inside datatrove: UT1 of Toulouse University, CC BY-SA 4.0
_WORD = re.compile(r"[a-z0-9]+")


def host_of(url: str) -> str:
    """Host of a URL: lower case, in punycode, without port and trailing dot; empty where there is none."""
    try:
        host = urlsplit(url).hostname or ""
        return host.rstrip(".").encode("idna").decode("ascii") if not host.isascii() else host.rstrip(".")
    except (ValueError, UnicodeError):
        return ""


def domains(source: str, categories: Iterable[str]) -> Iterator[str]:
    """The domains of the chosen categories (all where none is named) of UT1 or of a folder in its layout."""
    chosen = set(categories)
    if source != "ut1":
        folder = Path(source)
        files = [path for path in sorted(folder.glob("*/domains")) if not chosen or path.parent.name in chosen]
        missing = chosen - {path.parent.name for path in files}
        if not files or missing:
            raise InputError(
                f"block list {source}: no <category>/domains for {sorted(missing) or 'any category'}",
                "name a folder in UT1's layout, or 'ut1'",
            )
        for path in files:
            yield from path.read_text(encoding="utf-8").split()
        return
    spec = importlib.util.find_spec("datatrove")
    found = (
        sorted(Path(spec.submodule_search_locations[0]).rglob(_UT1)) if spec and spec.submodule_search_locations else []
    )
    if not found:
        raise MachineError(
            "the UT1 block list lies in the package datatrove, which is not installed", "pip install datatrove==0.10.1"
        )
    with tarfile.open(found[0]) as archive:
        for member in archive:
            parts = member.name.split("/")
            if (
                parts[-1] == "domains"
                and (not chosen or parts[-2] in chosen)
                and (stream := archive.extractfile(member))
            ):
                yield from stream.read().decode("utf-8", "replace").split()


def hashed(names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Sorted 64-bit hashes of the domains."""
    unique = {_hash(host_of(f"//{name}") or name.lower()) for name in names}
    return np.array(sorted(unique), dtype=np.uint64)


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))


def checksum(table: npt.NDArray[np.uint64]) -> str:
    """Sha256 of the table, for fingerprints."""
    return hashlib.sha256(table.tobytes()).hexdigest()


class BlockList:
    """Says whether a URL is blocked. `table` may be mapped (`np.load(mmap_mode='r')`): its pages are shared."""

    def __init__(self, table: npt.NDArray[np.uint64], words: Iterable[str]) -> None:
        self._table = table
        self._words = {word.lower() for word in words}

    def reason(self, url: str, host: str) -> str | None:
        """`blocked_domain` where the host or a domain above it is listed, `blocked_word`, or None."""
        name = host
        while name:
            hash_ = np.uint64(_hash(name))
            at = int(np.searchsorted(self._table, hash_))
            if at < len(self._table) and self._table[at] == hash_:
                return "blocked_domain"
            name = name.partition(".")[2]
        return "blocked_word" if not self._words.isdisjoint(_WORD.findall(url.lower())) else None
