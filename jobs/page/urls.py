"""The block list: domains and pages, as a sorted array of hashes that all workers map from one file, and words."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline import lines
from pipeline.errors import InputError, MachineError
from pipeline.recipe import BlockList as BlockListRecipe

_UT1 = "url_filterblacklistsv0_3_0.tar.gz"  # inside datatrove: UT1 of Toulouse University, CC BY-SA 4.0
_WORD = re.compile(r"[a-z0-9]+")
_SIMPLE = re.compile(r"[a-z0-9_.-]*[a-z0-9_-]")  # a host in its normal form: nearly all of the list's millions


def host_of(url: str) -> str:
    """Host of a URL: lower case, in punycode, without port and trailing dot; empty where there is none."""
    try:
        host = urlsplit(url).hostname or ""
        return host.rstrip(".").encode("idna").decode("ascii") if not host.isascii() else host.rstrip(".")
    except (ValueError, UnicodeError):
        return ""


def terms(recipe: BlockListRecipe) -> dict[str, Any]:
    """The recipe's word lists, with the contents of files that they name, as plain data for `BlockList`."""
    lists: dict[str, Any] = {
        name: _read(getattr(recipe, name)) for name in ("words", "soft_words", "sub_words", "allow")
    }
    return lists | {"soft_least": recipe.soft_least}


def _read(entries: Iterable[str]) -> list[str]:
    """A word list, sorted and in lower case; its entries are words, `file:PATH` or `datatrove:NAME`."""
    words: list[str] = []
    for entry in entries:
        kind, _, name = entry.partition(":")
        if kind == "datatrove":
            words += _datatrove(name).read_text(encoding="utf-8").splitlines()
        elif kind == "file":
            words += [line for _, line in lines.read(name, "correct the entry file:… of extract.block_list")]
        else:
            words.append(entry)
    return sorted({line.strip().lower() for line in words if line.strip() and not line.startswith("#")})


def listed(source: str, categories: Iterable[str]) -> Iterator[str]:
    """Domains, and pages as `host/path`, of the chosen categories (all where none is named).

    Raises `InputError` for a folder that is not in UT1's layout, `MachineError` where datatrove, which contains 'ut1',
    is not installed.
    """
    chosen = set(categories)
    if source == "ut1":
        if chosen:
            raise InputError("block list ut1 has no categories", "leave extract.block_list.categories empty")
        with tarfile.open(_datatrove(_UT1)) as archive:
            for name in ("domains", "urls"):
                stream = archive.extractfile(name)
                yield from stream.read().decode("utf-8", "replace").split() if stream else ()
        return
    folder = Path(source)
    files = [path for path in sorted(folder.glob("*/domains")) if not chosen or path.parent.name in chosen]
    missing = chosen - {path.parent.name for path in files}
    if not files or missing:
        raise InputError(
            f"block list {source}: no <category>/domains for {sorted(missing) or 'any category'}",
            "name a folder in UT1's layout, or 'ut1'",
        )
    for path in files:
        for file in (path, path.with_name("urls")):
            if file.exists():
                yield from file.read_text(encoding="utf-8", errors="replace").split()  # some lines are Latin-1


def identity(source: str, categories: Iterable[str]) -> str:
    """Sha256 of the files that `listed` reads; quicker than hashing the millions of names in them."""
    if source == "ut1":
        files = [_datatrove(_UT1)]
    else:
        files = sorted(path for name in ("domains", "urls") for path in Path(source).glob(f"*/{name}"))
    digest = hashlib.sha256(repr(sorted(categories)).encode())
    for path in files:
        digest.update(path.parent.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _datatrove(name: str) -> Path:
    """A file among datatrove's assets; the package is not imported, which needs its dependencies."""
    spec = importlib.util.find_spec("datatrove")
    paths = (
        sorted(Path(spec.submodule_search_locations[0]).rglob(name)) if spec and spec.submodule_search_locations else []
    )
    if not paths:
        remedy = "pip install --no-deps datatrove==0.10.1 (of the package, only its lists are used)"
        raise MachineError(f"{name} is part of the package datatrove, which is not installed", remedy)
    return paths[0]


def hashed(names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Sorted 64-bit hashes of domains and pages, each once; shape (names,)."""
    hashes = (_hash(name if _SIMPLE.fullmatch(name) else _entry(name)) for name in names)
    all_hashes = np.sort(np.fromiter(hashes, np.uint64))  # np.unique takes three times as long
    first = np.append(np.ones(len(all_hashes[:1]), bool), all_hashes[1:] != all_hashes[:-1])
    table: npt.NDArray[np.uint64] = all_hashes[first]
    return table


def _entry(name: str) -> str:
    """An entry of a list in the normal form of `page_of` or `host_of`."""
    return page_of(f"//{name}") if "/" in name else host_of(f"//{name}") or name.lower()


def page_of(url: str) -> str:
    """`host/path?query` of a URL, as lists of pages write it: without scheme, `www.`, and a slash at the end."""
    rest = url.partition("//")[2]
    path = rest[len(rest.partition("/")[0]) :].partition("#")[0].rstrip("/")
    return host_of(url).removeprefix("www.") + (path or "/")


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))


class BlockList:
    """Decides whether a URL is blocked.

    `table`: of `hashed`; it may be mapped (`np.load(mmap_mode='r')`), so that processes share its memory. `terms`: of
    the function of this name. As in FineWeb, a URL is blocked by any of `words`, or by `soft_least` of `soft_words`, if
    they are whole words of it, and by any of `sub_words` in its letters and digits. Unlike in FineWeb, case is ignored.
    """

    def __init__(self, table: npt.NDArray[np.uint64], terms: Mapping[str, Any]) -> None:
        self._table = table
        self._hard, self._soft = frozenset(terms["words"]), frozenset(terms["soft_words"])
        self._soft_least, self._allow = terms["soft_least"], frozenset(terms["allow"])
        parts = sorted({_plain(word) for word in terms["sub_words"]} - {""})
        self._sub = re.compile("|".join(parts)) if parts else None

    def reason(self, url: str, host: str) -> str | None:
        """`blocked_domain` where the host or a domain above it is listed, `blocked_url`, `blocked_word`, or None."""
        above = [host]
        while above[-1]:
            above.append(above[-1].partition(".")[2])
        if not self._allow.isdisjoint(above):
            return None
        if any(map(self._has, above[:-1])):
            return "blocked_domain"
        if self._has(page_of(url)):
            return "blocked_url"
        words = set(_WORD.findall(url.lower()))
        if not words.isdisjoint(self._hard) or len(words & self._soft) >= self._soft_least:
            return "blocked_word"
        return "blocked_word" if self._sub and self._sub.search(_plain(url)) else None

    def _has(self, name: str) -> bool:
        hash_ = np.uint64(_hash(name))
        at = int(np.searchsorted(self._table, hash_))
        return at < len(self._table) and bool(self._table[at] == hash_)


def _plain(text: str) -> str:
    return "".join(_WORD.findall(text.lower()))
