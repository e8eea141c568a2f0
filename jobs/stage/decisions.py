"""Decisions beside the text: documents never change; a stage writes which of them are kept, a later one reads both.

For each part of a text artifact there is a part of decisions, with rows (id, reason, …) in the same order; a null
reason means that the document is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.stage.parts import Part, State
from jobs.stage.table import Row, read_rows, write_table
from pipeline import artifact
from pipeline.artifact import Counts, Published
from pipeline.errors import ArtifactError
from pipeline.storage import Storage

PARQUET = ".parquet"


@dataclass(frozen=True)
class Text(Part):
    """A part of a text artifact."""

    text: str


@dataclass(frozen=True)
class Decided(Text):
    """A part of a text artifact, and the file of the decisions on its documents."""

    decided: str


def part_name(file: str) -> str:
    """`00003` of `…/part-00003.parquet`."""
    return file.rsplit("-", 1)[1].removesuffix(PARQUET)


def texts(published: Published) -> list[Text]:
    """The parts of a text artifact."""
    return [Text(part_name(file), file) for file in published.files(PARQUET)]


def aligned(published: Published, decisions: Published, prefix: str = "") -> list[Decided]:
    """The parts of a text artifact, each with its decisions; `prefix` begins their names.

    Raises `ArtifactError` where the decisions were made on another text: rows of different artifacts would be joined.
    """
    if published.manifest.content_hash not in {source.content for source in decisions.content.inputs}:
        text, decided = published.content.stage, decisions.content.stage
        raise ArtifactError(
            f"{decisions.folder} decides on other documents than those of {published.folder}",
            f"run the stages from {text} to {decided} again: {text} was made anew since",
        )
    pairs = zip(published.files(PARQUET), decisions.files(PARQUET), strict=True)
    return [Decided(prefix + part_name(text), text, decided) for text, decided in pairs]


def kept(storage: Storage, part: Decided, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a part that its decisions keep, in order, with `id` and these columns.

    A document on which there is no decision, since an earlier stage dropped it, is not among them.
    """
    stay = {row["id"] for row in read_rows(storage, part.decided, ("id", "reason")) if row["reason"] is None}
    return (row for row in read_rows(storage, part.text, ("id", *columns)) if row["id"] in stay)


def write(storage: Storage, folder: str, name: str, rows: Sequence[Row], schema: pa.Schema) -> Iterator[State]:
    """Write a part of decisions, and yield its commit with the counts."""
    file = f"part-{name}{PARQUET}"
    write_table(storage, f"{folder}/{file}", rows, schema)
    reasons = Counter(row["reason"] for row in rows)
    yield {"commit": {"file": artifact.describe(storage, folder, file, len(rows)).model_dump()} | counted(reasons)}


def counted(reasons: Counter[str | None]) -> dict[str, Any]:
    """Counts of a part's rows for its commit; `reasons`: by reason, None for kept."""
    dropped = {str(reason): count for reason, count in sorted(reasons.items(), key=str) if reason is not None}
    return {"in": reasons.total(), "kept": reasons[None], "dropped": dropped}


def totals(records: Mapping[str, Mapping[str, Any]]) -> tuple[list[artifact.File], Counts]:
    """Files and summed counts of all parts, from their commits."""
    dropped: Counter[str] = Counter()
    for record in records.values():
        dropped.update(record["dropped"])
    counts = Counts(
        in_=sum(record["in"] for record in records.values()),
        kept=sum(record["kept"] for record in records.values()),
        dropped=dict(sorted(dropped.items())),
    )
    return [artifact.File(**record["file"]) for record in records.values()], counts
