"""Which extracted documents stay: decided from score columns alone, in seconds.

    spark-submit jobs/filter.py --recipe recipes/demo.yaml --root .crawl2chat/data

For each part of extract, a part with rows (id, reason) of the documents that have text, in the same order; a null
reason means the document stays. A changed threshold never reads a page again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from jobs import parts, session
from jobs.page import quality
from jobs.table import read_rows, write_table
from pipeline import artifact, errors
from pipeline.artifact import Counts, Published, Stage
from pipeline.recipe import Filter
from pipeline.storage import Storage

STAGE = Stage("filter", 2)
SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])
_COLUMNS = ("id", "reason", "language", "language_score", "quality", *quality.COLUMNS)


def work(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part of extract: decide, write, count."""
    recipe = Filter.model_validate(payload["recipe"])
    storage = Storage(payload["root"])
    extracted = (row for row in read_rows(storage, payload["extract"], _COLUMNS) if row["reason"] is None)
    rows = [{"id": row["id"], "reason": quality.decide(row, recipe)} for row in extracted]
    yield from commit_decisions(storage, payload["folder"], name, rows, SCHEMA)


def commit_decisions(
    storage: Storage, folder: str, name: str, rows: list[dict[str, Any]], schema: pa.Schema
) -> Iterator[dict[str, Any]]:
    """Write a part of decisions and yield its commit, counts included."""
    file = f"part-{name}.parquet"
    write_table(storage, f"{folder}/{file}", rows, schema)
    reasons = Counter(row["reason"] for row in rows)
    yield {
        "commit": {
            "file": artifact.describe(storage, folder, file, len(rows)).model_dump(),
            "in": len(rows),
            "kept": reasons.pop(None, 0),
            "dropped": dict(sorted(reasons.items())),
        }
    }


def totals(records: dict[str, dict[str, Any]]) -> tuple[list[artifact.File], Counts]:
    """Files and counts of all parts."""
    dropped: Counter[str] = Counter()
    for record in records.values():
        dropped.update(record["dropped"])
    counts = Counts(
        in_=sum(record["in"] for record in records.values()),
        kept=sum(record["kept"] for record in records.values()),
        dropped=dict(sorted(dropped.items())),
    )
    return [artifact.File(**record["file"]) for record in records.values()], counts


def run(job: session.Job) -> Published:
    """The stage."""
    for key, rules in [("", job.recipe.filter), *job.recipe.filter.for_language.items()]:
        if (limit := rules.fineweb.short_line_chars) not in quality.SHORT_LINE_CHARS:
            raise errors.RecipeError(
                f"filter.{f'by_language.{key}.' if key else ''}fineweb.short_line_chars is {limit}, for which extract "
                "keeps no column",
                f"use one of {', '.join(map(str, quality.SHORT_LINE_CHARS))}",
            )
    source = session.upstream(job, "extract")
    building = session.open_stage(job, STAGE, [source])
    if isinstance(building, Published):
        return building
    payload = {
        "recipe": job.recipe.section("filter"),
        "root": job.storage.root,
        "folder": building.pointer.folder,
    }
    todo = [(session.part_name(file), payload | {"extract": file}) for file in source.files(".parquet")]
    spark = session.spark("filter")
    records = parts.run_parts(spark, building, todo, work)
    files, counts = totals(records)
    published = building.publish(files, counts, cpu_seconds=parts.cpu_seconds(records, spark))
    spark.stop()
    return published


def main() -> None:
    run(session.job(__doc__))


if __name__ == "__main__":
    errors.run(main)
