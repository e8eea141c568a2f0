"""Finds out before a stage is started whether it is published: a task that was cleared then ends in a second or two.

spark-submit starts a JVM and DeepSpeed's launcher imports torch before the stage can look; `pipeline.reuse` does
without both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from dags.parts.child import Child
from dags.parts.place import Place
from pipeline import artifact


def published(stage: str, arguments: Sequence[str], folder: str, log: Callable[[str], None]) -> bool:
    """Whether the run of these arguments reuses what `stage` published; with `--force` it does not.

    Where that cannot be found out, the stage is started, and says why it fails.
    """
    if "--force" in arguments:
        return False
    at = Place.of(arguments)
    if not artifact.runs_with(at.storage, stage):  # no run has published it: what the search costs is spared
        return False
    where = ["--recipe", at.recipe, "--root", at.root, "--run", at.run]
    lines: list[str] = []
    code = Child([sys.executable, "-m", "pipeline.reuse", "--step", stage, *where], folder, {}).wait(lines.append)
    if code == 0:  # else its lines are an error that the stage is about to report itself, or that it is not published
        log("\n".join(lines))
    return code == 0
