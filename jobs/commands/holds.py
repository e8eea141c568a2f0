"""Which artifacts and checkpoints hold a page, or were trained on it: for a request to take it down.

    python -m jobs.commands.holds https://… --root .crawl2chat/data        # or a host, or a document id

Searches all that was published below the root, and names the training of what holds the page: models, tokenizers and
checkpoints, those of unfinished training too. To take a page down, list it in a file of `decontaminate.take_down` and
run again; then remove what this command names.

It does not search the files of corpus stages that did not finish, below `_work` and in their artifacts' folders: let
those stages finish, or remove them with `python -m pipeline.gc`. Of stages that published, nothing below `_work` holds
text but checkpoints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.page.take_down import listed, normal_form
from jobs.stage.table import read_rows
from pipeline import artifact, command, errors
from pipeline.artifact import MANIFEST, Published
from pipeline.stages import CORPUS, MODELS
from pipeline.storage import Storage
from pipeline.terminal import show

TRAINED = ("tokenizer", *(step.name for step in MODELS))  # stages that train on the text of pages


def published(storage: Storage, stage: str) -> Iterator[Published]:
    """All published artifacts of a stage."""
    for name in storage.names(stage):
        if name.endswith(f"/{MANIFEST}"):
            yield artifact.read(storage, name.removesuffix(f"/{MANIFEST}"))


def unfinished(storage: Storage, stage: str) -> Iterator[tuple[str, list[str]]]:
    """Work folders of a stage from which nothing is published yet, and the folders of the artifacts that it reads."""
    last = {name.partition("/attempts/")[0]: name for name in storage.names(f"_work/{stage}") if "/attempts/" in name}
    finished = {finished.content.fingerprint for finished in published(storage, stage)}
    for folder, attempt in last.items():
        if folder.rsplit("/", 1)[-1] not in finished:
            yield folder, json.loads(storage.read(attempt)).get("inputs", [])


def pages(searched: Published, entry: str) -> int:
    """Number of rows of an artifact that `entry`, in its normal form, names."""
    wanted, columns = frozenset([entry]), ("id", "url", "offset")
    rows = (row for file in searched.files(".parquet") for row in read_rows(searched.storage, file, columns))
    return sum(listed(row, wanted) is not None for row in rows if row["offset"] >= 0)


@dataclass(frozen=True)
class Source:
    """What something was trained on: shards, or a tokenizer's texts, that hold the page; and what was removed since."""

    holders: list[str]
    removed: list[str]

    def __str__(self) -> str:
        if self.holders:
            return f"trained on {', '.join(self.holders)}"
        return f"made from {', '.join(self.removed)}, removed since: whether it was trained on the page is not known"

    def __bool__(self) -> bool:
        return bool(self.holders or self.removed)


def holding(storage: Storage, entry: str) -> Iterator[str]:
    """A line for each artifact that holds what `entry` names, and for each that was or is being trained on it."""
    holders: set[str] = set()
    for step in CORPUS:
        for searched in published(storage, step.stage) if step.holds else ():
            if count := pages(searched, normal_form(entry)):
                holders.add(searched.folder)
                yield f"{searched.folder}: {count} {step.holds}"
    for stage in TRAINED:
        for trained in published(storage, stage):
            if source := _source(storage, stage, [trained.folder], holders):
                yield f"{trained.folder}: {source}"
                work = f"_work/{stage}/{trained.content.fingerprint}"
                if count := _checkpoints(storage, work):
                    yield f"{work}: {count} checkpoints, {source}"
        for folder, inputs in unfinished(storage, stage):
            if source := _source(storage, stage, inputs, holders):
                yield f"{folder}: not finished, {_checkpoints(storage, folder)} checkpoints, {source}"


def _checkpoints(storage: Storage, work: str) -> int:
    """How many checkpoints a work folder has."""
    folder = f"{work}/checkpoints/"
    return len({name.removeprefix(folder).partition("/")[0] for name in storage.names(folder.rstrip("/"))})


def _source(storage: Storage, stage: str, folders: Sequence[str], holders: set[str]) -> Source:
    """What a stage trained on: it is looked for among all that these artifacts were made from, and themselves."""
    text = "redact" if stage == "tokenizer" else "shard"
    removed = [folder for folder in folders if not artifact.is_published(storage, folder)]
    sources: set[str] = set()
    for folder in folders:
        if folder not in removed:
            ancestors = artifact.lineage(storage, artifact.read(storage, folder), removed)
            sources.update(ancestor.folder for ancestor in ancestors if ancestor.content.stage == text)
    # Of what was removed only this can have held the page, or led to it: texts and shards that are left were searched.
    lost = [folder for folder in removed if folder.partition("/")[0] in (text, *TRAINED[1:])]
    return Source(sorted(sources & holders), lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", help="URL, host or document id")
    command.add_root(parser)
    options = parser.parse_args()
    storage = Storage(options.root)
    lines = list(holding(storage, options.entry))
    show(lines or [f"nothing below {storage.root} holds {options.entry}"])


if __name__ == "__main__":
    errors.run(main)
