"""Which extracted documents are kept: decided from columns of scores alone, in seconds.

    spark-submit jobs/filter.py --recipe recipes/demo.yaml --root .crawl2chat/data

For each part of extract, a part with rows (id, reason) of the documents that have text, in the same order; a null
reason means that the document is kept. A changed threshold never reads a page again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from jobs.page import quality
from jobs.stage import decisions, parts
from jobs.stage.parts import State
from jobs.stage.table import read_rows
from pipeline import command, errors
from pipeline.artifact import Published, Stage
from pipeline.command import Job
from pipeline.recipe import Filter
from pipeline.storage import Storage

STAGE = Stage("filter", 3)
SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])
_COLUMNS = ("id", "reason", "language", "language_score", "license", "quality", *quality.COLUMNS)


@dataclass(frozen=True)
class Filtering:
    """Decides on the parts of extract, and writes the decisions to `folder`."""

    storage: Storage
    folder: str
    recipe: Filter

    def work(self, part: decisions.Text) -> Iterator[State]:
        """Decide on each document of one part, and write the decisions."""
        extracted = (row for row in read_rows(self.storage, part.text, _COLUMNS) if row["reason"] is None)
        rows = [{"id": row["id"], "reason": quality.decide(row, self.recipe)} for row in extracted]
        yield from decisions.write(self.storage, self.folder, part.name, rows, SCHEMA)


def run(job: Job) -> Published:
    """Refuse thresholds for which there is no column, decide on every part of extract, publish."""
    for key, rules in [("", job.recipe.filter), *job.recipe.filter.for_language.items()]:
        if (limit := rules.fineweb.short_line_chars) not in quality.SHORT_LINE_CHARS:
            raise errors.RecipeError(
                f"filter.{f'by_language.{key}.' if key else ''}fineweb.short_line_chars is {limit}, for which extract "
                "keeps no column",
                f"use one of {', '.join(map(str, quality.SHORT_LINE_CHARS))}",
            )
    source = command.upstream(job, "extract")
    building = command.open_stage(job, STAGE, [source])
    if isinstance(building, Published):
        return building
    filtering = Filtering(job.storage, building.pointer.folder, job.recipe.filter)
    records, seconds = parts.run_step("filter", building, decisions.texts(source), filtering.work)
    files, counts = decisions.totals(records)
    return building.publish(files, counts, cpu_seconds=seconds)


def main() -> None:
    job = command.parse(__doc__)
    with command.recording(job, STAGE.name):
        run(job)


if __name__ == "__main__":
    errors.run(main)
