"""What no run needs any more: artifacts, and the work of stages, that no run leads to.

    python -m pipeline.gc --root .crawl2chat/data [--keep-days 30] [--delete]

A run stays that began a stage, or told of progress, less than so many days ago; so does all that it points to, and all
that this was made from. Nothing is removed without `--delete`: it tells what would go. Not beside a run that begins.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable

from pipeline import artifact, errors
from pipeline.artifact import Pointer
from pipeline.progress import last_event
from pipeline.storage import Storage

DAY = 86400.0
OURS = re.compile(r"([^/]+/[^/]+/[0-9a-f]{16})/")  # stage/partition/fingerprint, _work/stage/fingerprint


def forgotten(storage: Storage, runs: dict[str, list[Pointer]], before: float) -> list[str]:
    """The runs that did nothing since `before` (Unix seconds)."""

    def last(stage: Pointer) -> float:
        event = last_event(storage, f"{stage.work}/progress") if stage.state == "running" else None
        return max(stage.started, event.time if event else 0.0)

    return sorted(run for run, stages in runs.items() if max(map(last, stages)) < before)


def needed(storage: Storage, stages: Iterable[Pointer]) -> set[str]:
    """Folders, of artifacts and of work, that these pointers lead to."""
    found: set[str] = set()

    def reach(folder: str) -> None:
        if folder in found or not artifact.is_published(storage, folder):
            return
        made = artifact.read(storage, folder)
        found.update((folder, f"_work/{made.content.stage}/{made.content.fingerprint}"))
        for source in made.content.inputs:
            if source.fingerprint:
                reach(source.location)

    for stage in stages:
        reach(stage.folder)
        if stage.state == "running":
            found.update((stage.folder, stage.work))
            for attempt in storage.names(f"{stage.work}/attempts"):
                for folder in json.loads(storage.read(attempt))["inputs"]:
                    reach(folder)
    return found


def unneeded(storage: Storage, keep: set[str]) -> dict[str, int]:
    """Bytes of each folder of an artifact or of work that is not to be kept; what else lies there is not ours."""
    found: dict[str, int] = {}
    for name, size in storage.sizes("").items():
        ours = OURS.match(name)
        if ours and ours[1] not in keep:
            found[ours[1]] = found.get(ours[1], 0) + size
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--keep-days", type=float, default=30, help="forget runs that are older")
    parser.add_argument("--delete", action="store_true", help="remove, not only tell")
    given = parser.parse_args()
    storage = Storage(given.root)
    runs = artifact.pointers(storage)
    old = forgotten(storage, runs, time.time() - given.keep_days * DAY)
    keep = needed(storage, [stage for run, stages in runs.items() if run not in old for stage in stages])
    found = unneeded(storage, keep)
    for run in old:
        print(f"run {run}")
    for folder, size in sorted(found.items()):
        print(f"{folder}  {size / 1e6:,.1f} MB")
    told = f"{len(old)} runs and {len(found)} folders, {sum(found.values()) / 1e6:,.1f} MB"
    if not given.delete:
        print(f"{told} would go; --delete removes them")
        return
    for folder in [*(f"runs/{run}" for run in old), *sorted(found)]:
        storage.remove_tree(folder)
    print(f"{told} removed")


if __name__ == "__main__":
    errors.run(main)
