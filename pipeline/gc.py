"""Remove old runs, and the artifacts and work folders that no remaining run needs.

    python -m pipeline.gc --root .crawl2chat/data [--keep-days 30] [--delete]

A run is kept if it began a stage, or wrote progress, within so many days; with it are kept the artifacts that it points
to, and all that these were made from. Without `--delete` it only lists what it would remove. Do not run it while a run
is starting: artifacts that the run is about to reuse may be removed.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable

from pipeline import artifact, command, errors
from pipeline.artifact import Pointer
from pipeline.storage import Storage

DAY = 86400.0
OURS = re.compile(r"([^/]+/[^/]+/[0-9a-f]{16})/")  # stage/partition/fingerprint, _work/stage/fingerprint


def forgotten(storage: Storage, runs: dict[str, list[Pointer]], before: float) -> list[str]:
    """The runs that neither began a stage nor wrote progress since `before` (Unix seconds)."""

    def last(run: str, stages: list[Pointer]) -> float:
        plan = None if stages else artifact.plan(storage, run)  # it began, and no stage of it did
        return max([*(artifact.last_sign(storage, stage) for stage in stages), plan.began if plan else 0.0])

    return sorted(run for run, stages in runs.items() if last(run, stages) < before)


def needed(storage: Storage, stages: Iterable[Pointer]) -> set[str]:
    """Artifacts that these pointers lead to, and all that those were made from: their folders and work folders."""
    folders: set[str] = set()

    def reach(folder: str) -> None:
        if folder in folders or not artifact.is_published(storage, folder):
            return
        content = artifact.read(storage, folder).content
        folders.update((folder, f"_work/{content.stage}/{content.fingerprint}"))
        for source in content.inputs:
            if source.fingerprint:
                reach(source.location)

    for stage in stages:
        if not stage.folder:  # it failed before it knew what it would make
            continue
        reach(stage.folder)
        if not stage.finished:  # it has no manifest yet: its attempts name what it reads
            folders.update((stage.folder, stage.work))
            for attempt in storage.names(f"{stage.work}/attempts"):
                for folder in json.loads(storage.read(attempt))["inputs"]:
                    reach(folder)
    return folders


def unneeded(storage: Storage, keep: set[str]) -> dict[str, int]:
    """Bytes of each artifact and work folder that is not in `keep`; other files below the root are not ours."""
    bytes_of: dict[str, int] = {}
    for name, size in storage.sizes("").items():
        ours = OURS.match(name)
        if ours and ours[1] not in keep:
            bytes_of[ours[1]] = bytes_of.get(ours[1], 0) + size
    return bytes_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_root(parser)
    parser.add_argument("--keep-days", type=float, default=30, help="remove runs that did nothing for so long")
    parser.add_argument("--delete", action="store_true", help="remove; without it, only list")
    options = parser.parse_args()
    storage = Storage(options.root)
    runs = artifact.pointers(storage)
    old = forgotten(storage, runs, time.time() - options.keep_days * DAY)
    keep = needed(storage, [stage for run, stages in runs.items() if run not in old for stage in stages])
    folders = unneeded(storage, keep)
    for run in old:
        print(f"run {run}")
    for folder, size in sorted(folders.items()):
        print(f"{folder}  {size / 1e6:,.1f} MB")
    total = f"{len(old)} runs and {len(folders)} folders, {sum(folders.values()) / 1e6:,.1f} MB"
    if not options.delete:
        print(f"{total} would be removed; --delete removes them")
        return
    for folder in [*(f"runs/{run}" for run in old), *sorted(folders)]:
        storage.remove_tree(folder)
    print(f"{total} removed")


if __name__ == "__main__":
    errors.run(main)
