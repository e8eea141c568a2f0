"""Take-down lists: which documents an entry names.

An entry is a URL, a page as `host/path`, a host, or a document id. A URL and a page name that page under `http` and
`https`, with and without `www.`; a host names all its pages and those of the hosts below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from jobs.page.urls import host_of, page_of
from pipeline import lines

TAKEN_DOWN = "taken_down"  # reason of a dropped document
_ID = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)


def entries(file: str) -> Iterator[str]:
    """The entries of a take-down list, one per line, each in its `normal_form`; `#` begins a comment line."""
    numbered = lines.read(file, "check decontaminate.take_down")
    yield from (normal_form(line) for _, line in numbered if not line.lstrip().startswith("#"))


def normal_form(entry: str) -> str:
    """What `names_of` compares: people write hosts in capitals, with a slash at the end, or with their own letters."""
    entry = entry.strip()
    if _ID.fullmatch(entry):
        return entry.lower()
    if "://" in entry:
        return unquote(page_of(entry))
    entry = entry.lstrip("/*.")  # *.example.com
    _, _, path = entry.partition("/")
    return unquote(page_of(f"//{entry}")) if path else host_of(f"//{entry}") or entry.lower()


def names_of(row: dict[str, Any]) -> Iterator[str]:
    """The entries that name a document: its `id`, its page by its `url`, its host and each domain above that."""
    yield row["id"]
    host = host_of(row["url"])
    if host:
        yield unquote(page_of(row["url"]))
    while host:
        yield host
        host = host.partition(".")[2]


def listed(row: dict[str, Any], down: frozenset[str]) -> str | None:
    """The first entry that names a document, or None. `down`: entries in their `normal_form`."""
    return next((name for name in names_of(row) if name in down), None)
