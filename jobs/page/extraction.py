"""Main text of a page by trafilatura."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import trafilatura
from selectolax.lexbor import LexborHTMLParser

Mode = Literal["precision", "default", "fast"]
TITLE_CHARS = 500  # shown to people; a longer one is no title


@dataclass(frozen=True)
class Extracted:
    """Main text and title of a page."""

    text: str | None
    title: str | None


def extract(html: str, url: str, mode: Mode) -> Extracted:
    """The main text and title; text is None where there is none. Run it under `guard`."""
    # deduplicate=True would make a page's text depend on the pages before it (trafilatura#778).
    found = trafilatura.bare_extraction(
        html,
        url=url or None,
        favor_precision=mode == "precision",
        fast=mode == "fast",
        include_comments=False,
        deduplicate=False,
    )
    text = (found.text or "").strip() if found is not None else ""
    text = text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates beyond this point
    return Extracted(text, _title(html)) if text else Extracted(None, None)


def _title(html: str) -> str | None:
    """The page's <title>. trafilatura's own comes only with all metadata, dates too, which cost more than the text."""
    node = LexborHTMLParser(html).css_first("title")
    return (" ".join(node.text().split())[:TITLE_CHARS] or None) if node is not None else None
