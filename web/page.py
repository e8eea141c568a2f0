"""The templates of all pages, with the filters that they share."""

from __future__ import annotations

import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipeline import terminal
from web import words
from web.terms import meaning

FOLDER = Path(__file__).parent


@functools.cache  # compiling one takes longer than rendering it
def template(name: str) -> Template:
    """A template of `web/templates`. Values are escaped, and an unknown name is an error."""
    environment = Environment(
        loader=FileSystemLoader([FOLDER / "templates", FOLDER / "static"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=words.percent, short=words.short, duration=words.duration, shown=words.shown, plain=terminal.plain
    )
    environment.filters["meaning"] = meaning
    environment.globals["icon"] = (FOLDER / "static/favicon.svg").read_text(encoding="utf-8")
    return environment.get_template(name)
