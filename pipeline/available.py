"""Which tasks and tools there are: known by their files, so that a recipe is refused before anything is spent.

A task is `evaluation/tasks/<name>.py`, a tool `inference/tools/<name>.py`. Nothing of them is imported here.
"""

from __future__ import annotations

from pathlib import Path

_PROJECT = Path(__file__).parents[1]


def tasks() -> tuple[str, ...]:
    """Names of the tasks."""
    return _modules("evaluation/tasks")


def tools() -> tuple[str, ...]:
    """Names of the tools."""
    return _modules("inference/tools")


def _modules(folder: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (_PROJECT / folder).glob("[a-z]*.py")))
