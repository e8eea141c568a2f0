"""Take-down lists: which documents an entry names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.page.urls import host_of
from pipeline import lines

TAKEN_DOWN = "taken_down"  # reason of a dropped document


def entries(file: str) -> Iterator[str]:
    """The entries of a take-down list: URLs, hosts or document ids, one per line; `#` begins a comment line."""
    numbered = lines.read(file, "check decontaminate.take_down")
    yield from (line.strip() for _, line in numbered if not line.startswith("#"))


def listed(row: dict[str, Any], down: frozenset[str]) -> str | None:
    """The entry that names a document, by its `id`, its `url`, its host or a domain above it; or None."""
    names = [row["id"], row["url"]]
    host = host_of(row["url"])
    while host:
        names.append(host)
        host = host.partition(".")[2]
    return next((name for name in names if name in down), None)
