"""Documents of a run to look at: for each reason a few that were dropped, and a few that stayed.

Chosen by the smallest id; ids are hashes, so this is a fair draw, and the same at every look.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifact import Published

EACH = 3  # documents a reason
CHARS = 400  # of a text
PARTS = 64  # of a stage that are looked at: a snapshot has 90,000, and the first are as good as any

_ADDRESS = re.compile(r"[^\s@<>]{1,64}@[^\s@<>]{1,255}")
_NUMBER = re.compile(r"\+?\d(?:[\s().-]?\d){6,}")  # seven digits: the shortest telephone numbers

# Columns of extract that say where a page lies, not how good it is.
_PLACE = ("id", "url", "host", "warc", "offset", "date", "status", "mime", "charset", "title", "text", "language")
_NOT_SCORES = (*_PLACE, "reason", "detail", "html_bytes")


@dataclass
class Document:
    """One page to show. `scores`: name to value, as extract found them."""

    id: str
    url: str
    title: str = ""
    detail: str = ""
    text: str = ""
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Documents that left a stage for the same reason; `reason` is empty for those that stayed to the end."""

    stage: str
    reason: str
    count: int
    documents: list[Document]


def groups(stages: Mapping[str, Published]) -> list[Group]:
    """All reasons of extract, filter and deduplicate, the most frequent of a stage first; what stayed comes last."""
    chosen: list[tuple[str, str, int, list[dict[str, Any]]]] = []
    for stage in ("extract", "filter", "deduplicate"):
        if (published := stages.get(stage)) and published.content.counts:
            counts = published.content.counts.dropped
            rows = _smallest(published)
            for reason in sorted(counts, key=lambda r: (-counts[r], r)):
                chosen.append((stage, reason, counts[reason], rows.get(reason, [])))
    final = next((stages[name] for name in ("redact", "deduplicate", "filter", "extract") if name in stages), None)
    if final and final.content.counts:
        chosen.append((final.content.stage, "", final.content.counts.kept, _smallest(final).get("", [])))
    wanted = {row.get(key) or row["id"] for *_, rows in chosen for row in rows for key in ("id", "cluster")}
    pages = _rows(stages.get("extract"), wanted)
    kept = {row["id"] for stage, *_, rows in chosen if stage == "redact" for row in rows}
    redacted = _rows(stages.get("redact"), kept, ("id", "title", "text"))
    return [
        Group(stage, reason, count, [_document(row, pages, redacted if not reason else {}) for row in rows])
        for stage, reason, count, rows in chosen
    ]


def _document(row: dict[str, Any], pages: dict[str, dict[str, Any]], redacted: dict[str, dict[str, Any]]) -> Document:
    page = pages.get(row["id"], {})
    detail = page.get("detail") or ""
    if row.get("cluster") and row["cluster"] != row["id"]:
        detail = f"in its place stays {pages.get(row['cluster'], {}).get('url') or row['cluster']}"
    clean = redacted.get(row["id"], {})
    title, text = (
        (clean[column] or "") if column in clean else masked((page.get(column) or "")[: 2 * CHARS])
        for column in ("title", "text")
    )
    scores = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in page.items()
        if name not in _NOT_SCORES and value is not None
    }
    return Document(
        row["id"],
        page.get("url") or "",
        title,
        detail,
        text[:CHARS] + "…" * (len(text) > CHARS),
        scores,
    )


def masked(text: str) -> str:
    """Text that no stage has redacted, without what looks like an e-mail address or a long number."""
    return _NUMBER.sub("<NUMBER>", _ADDRESS.sub("<EMAIL>", text))


def _parts(published: Published) -> list[str]:
    return published.files(".parquet")[:PARTS]


def _smallest(published: Published) -> dict[str, list[dict[str, Any]]]:
    """Of each reason (empty: none) the rows with the smallest ids."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in _parts(published):
        with published.storage.reading(name) as stream:
            file = pq.ParquetFile(stream)
            columns = [c for c in ("id", "reason", "cluster") if c in file.schema_arrow.names]
            of_part: dict[str, list[dict[str, Any]]] = {}
            for row in file.read(columns).sort_by("id").to_pylist():
                rows = of_part.setdefault(row.get("reason") or "", [])
                if len(rows) < EACH:
                    rows.append(row)
        for reason, rows in of_part.items():
            found[reason] = sorted([*found.get(reason, []), *rows], key=lambda row: str(row["id"]))[:EACH]
    return found


def _rows(
    published: Published | None, ids: set[str], columns: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Rows of these ids, by id; a group of rows that holds none of them is not read."""
    found: dict[str, dict[str, Any]] = {}
    if published is None or not ids:
        return found
    wanted = pa.array(sorted(ids))
    for name in _parts(published):
        with published.storage.reading(name) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                here = pc.is_in(file.read_row_group(group, ["id"])["id"], wanted)
                if pc.any(here).as_py():
                    found |= {row["id"]: row for row in file.read_row_group(group, columns).filter(here).to_pylist()}
    return found
