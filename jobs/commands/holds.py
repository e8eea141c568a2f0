"""Which artifacts and checkpoints hold a page, or were trained on it: for a request to take it down.

    python -m jobs.commands.holds https://… --root .crawl2chat/data        # or a host, or a document id

Searches all that was published below the root, and the work of stages that are not finished. To take a page down, list
it in a file of `decontaminate.take_down` and run again; then remove what this command names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from jobs.page.take_down import listed
from jobs.stage.table import read_rows
from pipeline import artifact, command, errors
from pipeline.artifact import MANIFEST, Published
from pipeline.stages import CORPUS, MODELS
from pipeline.storage import Storage

TRAINED = ("tokenizer", *(step.name for step in MODELS))  # stages that train on the text of pages


def published(storage: Storage, stage: str) -> Iterator[Published]:
    """All published artifacts of a stage."""
    for name in storage.names(stage):
        if name.endswith(f"/{MANIFEST}"):
            yield artifact.read(storage, name.removesuffix(f"/{MANIFEST}"))


def unfinished(storage: Storage, stage: str) -> Iterator[tuple[str, list[Published]]]:
    """Work folders of a stage from which nothing is published yet, and the artifacts that the stage reads."""
    last = {name.partition("/attempts/")[0]: name for name in storage.names(f"_work/{stage}") if "/attempts/" in name}
    finished = {made.content.fingerprint for made in published(storage, stage)}
    for folder, attempt in last.items():
        if folder.rsplit("/", 1)[-1] not in finished:
            inputs = json.loads(storage.read(attempt)).get("inputs", [])
            yield folder, [artifact.read(storage, name) for name in inputs if storage.exists(f"{name}/{MANIFEST}")]


def pages(made: Published, entry: str) -> int:
    """Number of rows of an artifact that `entry`, a URL, host or document id, names."""
    wanted = frozenset([entry])
    rows = (row for file in made.files(".parquet") for row in read_rows(made.storage, file, ("id", "url", "offset")))
    return sum(listed(row, wanted) is not None for row in rows if row["offset"] >= 0)


def holding(storage: Storage, entry: str) -> Iterator[str]:
    """A line for each artifact that holds what `entry` names, and for each that was or is being trained on it."""
    holders: set[str] = set()
    for step in CORPUS:
        for made in published(storage, step.stage) if step.holds else ():
            if count := pages(made, entry):
                holders.add(made.folder)
                yield f"{made.folder}: {count} {step.holds}"
    for stage in TRAINED:
        for made in published(storage, stage):
            if sources := _training_data(storage, made, holders):
                yield f"{made.folder}: trained on {', '.join(sources)}"
        for folder, inputs in unfinished(storage, stage):
            if sources := sorted({name for source in inputs for name in _training_data(storage, source, holders)}):
                count = len({name.split("/")[4] for name in storage.names(f"{folder}/checkpoints")})
                yield f"{folder}: not finished, {count} checkpoints, is trained on {', '.join(sources)}"


def _training_data(storage: Storage, made: Published, holders: set[str]) -> list[str]:
    """The shards that an artifact was trained on, or a tokenizer's texts, as far as they are among `holders`."""
    text = "redact" if made.content.stage == "tokenizer" else "shard"
    ancestors = artifact.lineage(storage, made)
    return [source.folder for source in ancestors if source.content.stage == text and source.folder in holders]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", help="URL, host or document id")
    command.add_root(parser)
    options = parser.parse_args()
    storage = Storage(options.root)
    lines = list(holding(storage, options.entry))
    print("\n".join(lines) or f"nothing below {storage.root} holds {options.entry}")


if __name__ == "__main__":
    errors.run(main)
