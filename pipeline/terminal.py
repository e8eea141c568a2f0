"""Text from elsewhere (pages, archives, lists, a model's samples), made safe for a terminal, a log or a page of ours.

Printed as it is, a page's title could recolour or retitle the terminal, write the clipboard (OSC 52), or reverse what
stands beside it. Every print of such text goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# C0 and C1 controls but tab and newline, and the characters of text direction that embed or override (UAX #9, X1-X8).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: Any) -> str:
    """Text whose control characters (see `_CONTROL`) are replaced by U+FFFD."""
    return _CONTROL.sub("\ufffd", str(text))


def one_line(text: Any) -> str:
    """As `plain`, for a URL or a title: with a newline in it, a page could write lines of our output."""
    return plain(text).replace("\n", " ").replace("\t", " ")


def show(lines: Iterable[str]) -> None:
    """Print lines that hold text from elsewhere, with `plain`."""
    for line in lines:
        print(plain(line), flush=True)
