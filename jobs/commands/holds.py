"""Which artifacts and checkpoints hold a page: for a request to take it down.

    python -m jobs.commands.holds https://… --root .crawl2chat/data        # or a host, or a document id

Looks into all that was published below the root, and into the work of stages that are not finished. To take a page
down, list it in a file of `decontaminate.take_down` and run again: then remove what this names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from jobs.page.take_down import listed
from jobs.stage.table import read_rows
from pipeline import artifact, errors
from pipeline.artifact import MANIFEST, Published
from pipeline.stages import CORPUS, MODELS
from pipeline.storage import Storage

LEARNED = ("tokenizer", *(step.name for step in MODELS))  # stages that learn from the text of pages


def published(storage: Storage, stage: str) -> Iterator[Published]:
    """All published artifacts of a stage."""
    for name in storage.names(stage):
        if name.endswith(f"/{MANIFEST}"):
            yield artifact.read(storage, name.removesuffix(f"/{MANIFEST}"))


def unfinished(storage: Storage, stage: str) -> Iterator[tuple[str, list[Published]]]:
    """Work folders of a stage that has not published what it makes there, and what it read."""
    last = {name.partition("/attempts/")[0]: name for name in storage.names(f"_work/{stage}") if "/attempts/" in name}
    made = {found.content.fingerprint for found in published(storage, stage)}
    for folder, attempt in last.items():
        if folder.rsplit("/", 1)[-1] not in made:
            inputs = json.loads(storage.read(attempt)).get("inputs", [])
            yield folder, [artifact.read(storage, name) for name in inputs if storage.exists(f"{name}/{MANIFEST}")]


def pages(found: Published, entry: str) -> int:
    """How many rows of an artifact are of the page, of the host, or of the document."""
    wanted = frozenset([entry])
    rows = (row for file in found.files(".parquet") for row in read_rows(found.storage, file, ("id", "url", "offset")))
    return sum(listed(row, wanted) is not None for row in rows if row["offset"] >= 0)


def holding(storage: Storage, entry: str) -> Iterator[str]:
    """A line for each artifact and each unfinished work that holds or learned from it."""
    held: set[str] = set()
    for step in CORPUS:
        for found in published(storage, step.stage) if step.holds else ():
            if count := pages(found, entry):
                held.add(found.folder)
                yield f"{found.folder}: {count} {step.holds}"
    for stage in LEARNED:
        for found in published(storage, stage):
            if sources := _shards(storage, found, held):
                yield f"{found.folder}: learned from {', '.join(sources)}"
        for folder, inputs in unfinished(storage, stage):
            if sources := sorted({name for found in inputs for name in _shards(storage, found, held)}):
                count = len({name.split("/")[4] for name in storage.names(f"{folder}/checkpoints")})
                yield f"{folder}: not finished, {count} checkpoints, learns from {', '.join(sources)}"


def _shards(storage: Storage, found: Published, held: set[str]) -> list[str]:
    """What an artifact learned from, of those that hold the page: shards, or the texts of a tokenizer."""
    text = "redact" if found.content.stage == "tokenizer" else "shard"
    made = artifact.lineage(storage, found)
    return [one.folder for one in made if one.content.stage == text and one.folder in held]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", help="URL, host or document id")
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    given = parser.parse_args()
    storage = Storage(given.root)
    lines = list(holding(storage, given.entry))
    print("\n".join(lines) or f"nothing below {storage.root} holds {given.entry}")


if __name__ == "__main__":
    errors.run(main)
