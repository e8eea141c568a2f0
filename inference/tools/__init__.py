"""Tools that a model may call while it writes: one small class per file, found by the file's name.

A tool gets the argument of a call as text and returns text. Its errors are returned as text as well, for the model to
read: an exception would end the sampling of all rows of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Protocol

from pipeline import available
from pipeline.errors import RecipeError


class Tool(Protocol):
    """What sampling needs of a tool; a file `inference/tools/<name>.py` holds one as `TOOL`."""

    name: str  # as the model writes it in a call
    description: str  # of what it computes, for a system message

    def run(self, argument: str) -> str:
        """The output for the argument of one call; returns an error as text, never raises."""


def load_tools(names: Iterable[str]) -> dict[str, Tool]:
    """The tools of these names, by name. Raises `RecipeError` for a name without a file."""
    tools: dict[str, Tool] = {}
    for name in names:
        if name not in (known := available.tools()):
            raise RecipeError(f"there is no tool {name!r}", f"name one of {', '.join(known)}")
        tools[name] = import_module(f"inference.tools.{name}").TOOL
    return tools


def call_tool(tools: Mapping[str, Tool], name: str, argument: str) -> str:
    """The output of the tool `name`; where the model has no such tool, an error for it to read."""
    # Cut: the name is whatever the model wrote, and the message is fed back into its window.
    return tools[name].run(argument) if name in tools else f"error: no tool {name[:40]}"
