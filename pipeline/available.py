"""Which tasks, tools and sets there are: known by their files, so that a recipe is refused before anything is spent.

A task is `evaluation/tasks/<name>.py`, a tool `inference/tools/<name>.py`; a set `builtin:<name>` is a file of JSON
lines. Nothing of them is imported here.
"""

from __future__ import annotations

from pathlib import Path

BUILTIN = "builtin:"  # begins the name of a set that comes with the project, where a file may be named as well
_PROJECT = Path(__file__).parents[1]


def tasks() -> tuple[str, ...]:
    """Names of the tasks."""
    return _modules("evaluation/tasks")


def tools() -> tuple[str, ...]:
    """Names of the tools."""
    return _modules("inference/tools")


def conversations() -> tuple[str, ...]:
    """Names of the built-in sets of conversations."""
    return _stems("training/data/builtin", "*.jsonl")


def demonstrations() -> tuple[str, ...]:
    """Names of the built-in sets of prompts."""
    held_out = "identity_held_out"  # questions to the assistant, which evaluation asks itself
    return tuple(name for name in _stems("evaluation/data", "*.jsonl") if name != held_out)


def _modules(folder: str) -> tuple[str, ...]:
    return _stems(folder, "[a-z]*.py")


def _stems(folder: str, pattern: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (_PROJECT / folder).glob(pattern)))
