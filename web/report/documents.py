"""Example documents of a run: for each reason a few that were dropped, and a few that stayed.

Those with the smallest ids: ids are hashes, so this is a random sample, and always the same one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.page import take_down
from jobs.page.quality import Check
from jobs.page.take_down import TAKEN_DOWN
from pipeline.artifact import Published
from pipeline.errors import InputError
from pipeline.recipe import Filter
from pipeline.stages import PAGES
from web.report.scores import checks, rules
from web.words import shown

EACH = 3  # documents per reason
CHARS = 400  # of a text that are shown
PARTS = 64  # files of a stage that are sampled: a snapshot has 90,000

_ADDRESS = re.compile(r"[^\s@<>]{1,64}@[^\s@<>]{1,255}")
_NUMBER = re.compile(r"\+?\d(?:[\s().-]?\d){6,}")  # seven digits: the shortest telephone numbers

# Columns of extract that identify a page, or that other columns sum up; the others are its scores.
_PLACE = ("id", "url", "host", "warc", "offset", "date", "status", "mime", "charset", "title", "text", "language")
_NOT_SCORES = (*_PLACE, "reason", "detail", "html_bytes", "languages", "detected", "license_sign")


@dataclass(frozen=True)
class Score:
    """A score of a page, with the thresholds of the run's recipe for it; `broken`: it is beyond one of them."""

    name: str
    value: Any
    limits: str
    broken: bool


@dataclass
class Document:
    """A page as it is shown, with its scores from extract."""

    id: str
    url: str
    title: str = ""
    detail: str = ""
    text: str = ""
    scores: list[Score] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Documents that left a stage for the same reason; `reason` is empty for those that stayed to the end."""

    stage: str
    reason: str
    count: int
    documents: list[Document]


def groups(stages: Mapping[str, Published]) -> list[Group]:
    """All reasons of all stages, a stage's most frequent first; documents that stayed come last.

    Pages that were taken down are only counted: they are shown neither as such nor as the page that replaces a copy.
    """
    samples: list[tuple[str, str, int, list[dict[str, Any]]]] = []  # stage, reason, count, rows
    is_taken_down = taken_down(stages.get("decontaminate"))
    counted = [stages[step.name] for step in PAGES if step.name in stages and stages[step.name].content.counts]
    for published in counted:
        counts = published.content.counts.dropped if published.content.counts else {}
        rows = _smallest(published) if counts else {}
        for reason in sorted(counts, key=lambda r: (-counts[r], r)):
            shown = [] if reason == TAKEN_DOWN else rows.get(reason, [])
            samples.append((published.content.stage, reason, counts[reason], shown))
    if counted and (final := counted[-1].content).counts:
        samples.append((final.stage, "", final.counts.kept, stayed(stages)))
    wanted = {row.get(key) or row["id"] for *_, rows in samples for row in rows for key in ("id", "cluster")}
    pages = {id_: page for id_, page in _rows(stages.get("extract"), wanted).items() if not is_taken_down(page)}
    redacted = _rows(stages.get("redact"), wanted, ("id", "title", "text"))
    limits = rules(stages)
    return [
        Group(stage, reason, count, [_document(row, pages, redacted, limits) for row in rows if row["id"] in pages])
        for stage, reason, count, rows in samples
    ]


def stayed(stages: Mapping[str, Published]) -> list[dict[str, Any]]:
    """A few documents that are in the shards; before there are shards, that the last published stage kept."""
    shard, redact = stages.get("shard"), stages.get("redact")
    if shard is None or redact is None:
        decided = ("decontaminate", "redact", "deduplicate", "filter", "extract")
        final = next((stages[name] for name in decided if name in stages), None)
        return _smallest(final).get("", []) if final else []
    # Shards are split by the hash of the id, parts by archive, so the sampled files of both share some documents.
    return [{"id": id_} for id_ in sorted(_ids(redact) & _ids(shard))[:EACH]]


def taken_down(decontaminate: Published | None) -> Callable[[dict[str, Any]], bool]:
    """A predicate of extract's rows: taken down by decontaminate's decision, or on a take-down list of the recipe.

    Raises `InputError` where such a list is not there.
    """
    if decontaminate is None:
        return lambda page: False
    ids = {row["id"] for row in _decisions(decontaminate) if row["reason"] == TAKEN_DOWN}
    files = decontaminate.content.recipe.get("take_down", [])
    for file in files:
        if not Path(file).is_file():  # without it, pages that it names would be shown
            raise InputError(
                f"{file}, a take-down list of this run, is not there",
                "put it back, or start the report in the folder that it is relative to",
            )
    entries = frozenset(entry for file in files for entry in take_down.entries(file))
    return lambda page: page["id"] in ids or take_down.listed(page, entries) is not None


def _decisions(published: Published) -> Iterator[dict[str, Any]]:
    for name in _parts(published):
        with published.storage.reading(name) as stream:
            yield from pq.read_table(stream, columns=["id", "reason"]).to_pylist()


def _ids(published: Published) -> set[str]:
    ids: set[str] = set()
    for name in _parts(published):
        with published.storage.reading(name) as stream:
            ids.update(pq.read_table(stream, columns=["id"])["id"].to_pylist())
    return ids


def _document(
    row: dict[str, Any],
    pages: dict[str, dict[str, Any]],
    redacted: dict[str, dict[str, Any]],
    limits: Filter | None,
) -> Document:
    page = pages[row["id"]]
    detail = page.get("detail") or row.get("detail") or ""
    if row.get("cluster") and row["cluster"] != row["id"]:
        detail = f"kept instead: {pages.get(row['cluster'], {}).get('url') or 'a page that is not shown'}"
    as_redacted = redacted.get(row["id"], {})
    title, text = (
        (as_redacted[column] or "") if column in as_redacted else masked((page.get(column) or "")[: 2 * CHARS])
        for column in ("title", "text")
    )
    return Document(
        row["id"],
        page.get("url") or "",
        title,
        detail,
        text[:CHARS] + "…" * (len(text) > CHARS),
        _scores(page, limits),
    )


def _scores(page: dict[str, Any], limits: Filter | None) -> list[Score]:
    """The scores of a page, those with thresholds first: beyond them, within them, and all others."""
    of_score: dict[str, list[Check]] = {}
    for check in checks(page, limits):
        of_score.setdefault(check.score, []).append(check)
    found = [
        Score(
            name,
            round(value, 4) if isinstance(value, float) else value,
            ", ".join(f"{check.relation} {shown(check.limit)}" for check in of_score.get(name, [])),
            any(check.broken for check in of_score.get(name, [])),
        )
        for name, value in page.items()
        if value is not None and (name not in _NOT_SCORES or name in of_score)
    ]
    return sorted(found, key=lambda score: (not score.broken, not score.limits))


def masked(text: str) -> str:
    """Text that was not redacted, with placeholders for what looks like an e-mail address or a long number."""
    return _NUMBER.sub("<NUMBER>", _ADDRESS.sub("<EMAIL>", text))


def _parts(published: Published) -> list[str]:
    return published.files(".parquet")[:PARTS]


def _smallest(published: Published) -> dict[str, list[dict[str, Any]]]:
    """The rows with the smallest ids, by reason; the empty reason has the rows that were kept."""
    smallest: dict[str, list[dict[str, Any]]] = {}
    for name in _parts(published):
        with published.storage.reading(name) as stream:
            file = pq.ParquetFile(stream)
            columns = [c for c in ("id", "reason", "cluster", "detail") if c in file.schema_arrow.names]
            of_part: dict[str, list[dict[str, Any]]] = {}
            for row in file.read(columns).sort_by("id").to_pylist():
                rows = of_part.setdefault(row.get("reason") or "", [])
                if len(rows) < EACH:
                    rows.append(row)
        for reason, rows in of_part.items():
            smallest[reason] = sorted([*smallest.get(reason, []), *rows], key=lambda row: str(row["id"]))[:EACH]
    return smallest


def _rows(
    published: Published | None, ids: set[str], columns: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Rows of these ids, by id; a row group without any of them is not read."""
    rows: dict[str, dict[str, Any]] = {}
    if published is None or not ids:
        return rows
    wanted = pa.array(sorted(ids))
    for name in _parts(published):
        with published.storage.reading(name) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                here = pc.is_in(file.read_row_group(group, ["id"])["id"], wanted)
                if pc.any(here).as_py():
                    rows |= {row["id"]: row for row in file.read_row_group(group, columns).filter(here).to_pylist()}
    return rows
