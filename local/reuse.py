"""A run whose stages are all published: it is complete without Airflow, whose start alone takes half a minute."""

from __future__ import annotations

import subprocess
import sys

from pipeline.recipe import Recipe
from pipeline.storage import Storage


def whole(recipe: Recipe, storage: Storage, run: str) -> bool:
    """Let `run` reuse every stage and make its report, if all are published; else it leaves nothing of the run.

    Whatever is in the way of it is no error here: the stage meets it in Airflow, where it can be tried again.
    """
    file = f"runs/{run}/recipe.yaml"
    where = ["--root", storage.root, "--run", run]
    commands = ["pipeline.reuse", "--recipe", storage.path(file), *where], ["web.report", *where]
    complete = False
    try:
        storage.write(file, recipe.to_yaml().encode())
        # In processes of their own: what they import would stay in this one's memory for the whole of a run.
        complete = all(
            subprocess.run([sys.executable, "-m", *command], capture_output=True, check=False).returncode == 0
            for command in commands
        )
    finally:  # an interrupt, too, leaves no run that never was
        if not complete:
            storage.remove_tree(f"runs/{run}")
    return complete
