"""Tools that a model may call while it writes: one small class per file, found by the file's name.

A tool reads the argument of a call as text and returns text. What it cannot do it says in that text: an exception would
end the sampling of all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Protocol

from pipeline import available
from pipeline.errors import RecipeError


class Tool(Protocol):
    """What sampling needs of a tool; a file `inference/tools/<name>.py` holds one as `TOOL`."""

    name: str  # as the model writes it
    description: str  # for a system message

    def run(self, argument: str) -> str:
        """The output of a call."""


def named(names: Iterable[str]) -> dict[str, Tool]:
    """The tools of these names. Raises `RecipeError` for one that there is not."""
    found: dict[str, Tool] = {}
    for name in names:
        if name not in (known := available.tools()):
            raise RecipeError(f"there is no tool {name!r}", f"name one of {', '.join(known)}")
        found[name] = import_module(f"inference.tools.{name}").TOOL
    return found


def answer(tools: Mapping[str, Tool], name: str, argument: str) -> str:
    """The output of a call; of a tool that is not there, an error that the model reads."""
    return tools[name].run(argument) if name in tools else f"error: no tool {name[:40]}"
