"""A few files of a crawl before all others: what they hold, how much of it would be kept, what extraction costs.

    spark-submit jobs/canary.py --recipe recipes/demo.yaml --root .crawl2chat/data

The files, `approval.canary_warcs` of them, are spread evenly over the input. Their parts are extract's own, so nothing
is extracted twice. The numbers of its manifest are those that the approval of a run compares with the bounds of the
recipe's section `approval`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from jobs import extract
from jobs.archive import sources
from jobs.page import quality
from jobs.stage.table import read_rows
from pipeline import command, errors
from pipeline.artifact import Identity, Published, Stage
from pipeline.command import Job
from pipeline.numbers import CanaryNumbers
from pipeline.recipe import Filter
from pipeline.storage import Storage

STAGE = Stage("canary", 1)
_COLUMNS = ("id", "reason", "detected", "language", "language_score", "quality", *quality.COLUMNS)


def chosen(files: int, canaries: int) -> list[int]:
    """Indices of the canaries among so many files, evenly spread."""
    count = min(files, canaries)
    return [(2 * i + 1) * files // (2 * count) for i in range(count)]


def summary(storage: Storage, files: list[str], recipe: Filter) -> dict[str, Any]:
    """Counts of these parts of extract: pages, pages that the filter would keep, reasons of the others, languages."""
    reasons: Counter[str | None] = Counter()
    languages: Counter[str] = Counter()
    for file in files:
        for row in read_rows(storage, file, _COLUMNS):
            reasons[row["reason"] or quality.decide(row, recipe)] += 1
            if row["detected"]:
                languages[row["detected"]] += 1
    kept, dropped = reasons.pop(None, 0), reasons.total()
    return {
        "pages": kept + dropped,
        "kept": kept,
        "dropped": {str(reason): count for reason, count in sorted(reasons.items(), key=str)},
        "languages": dict(sorted(languages.items())),
    }


def run(job: Job) -> Published:
    """Open the stage, extract the chosen files with extract's own parts, publish what they hold."""
    files = sources.find(job.recipe.input)
    extracted, wanted = extract.identity(job, files), job.recipe.approval.canary_warcs
    section = {"canary_warcs": wanted, "extract": extracted.fingerprint, "filter": job.recipe.section("filter")}
    identity = Identity(STAGE, section, job.recipe.seed, extracted.inputs)
    building = command.start(job, identity)
    if isinstance(building, Published):
        return building
    numbers = CanaryNumbers(files=len(files), canary_files=0, extract=extracted.folder)
    seconds = 0.0
    # With --force extract is opened in any case: its batches, which take no --force, then begin from nothing.
    opened = extract.begin(job, files, extracted) if wanted or job.force else None
    if wanted and opened:
        places = chosen(len(files), wanted)
        if isinstance(opened, Published):
            parts = [opened.files(".parquet")[place] for place in places]
            seconds = opened.manifest.run.cpu_seconds * len(parts) / len(files)
        else:
            records, seconds = opened.extract([opened.parts[place] for place in places], "canary")
            parts = [opened.building.file(record["file"]["path"]) for record in records.values()]
        contents = summary(job.storage, parts, job.recipe.filter)
        numbers = CanaryNumbers.model_validate(numbers.plain() | contents | {"canary_files": len(parts)})
    run_numbers = {"extract_cpu_seconds": round(seconds, 3), "crawl": sources.listing_key(job.recipe.input)}
    return building.publish([], None, numbers.plain(), run_numbers)


def main() -> None:
    job = command.job(command.parser(__doc__, extract.WARCS).parse_args(), warcs=True)
    with command.recording(job, STAGE.name):
        run(job)


if __name__ == "__main__":
    errors.run(main)
