"""Main text of a page by trafilatura, or by resiliparse."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import trafilatura
import trafilatura.xpaths
from lxml.etree import XPath
from resiliparse.extract.html2text import extract_plain_text
from selectolax.lexbor import LexborHTMLParser

Mode = Literal["precision", "default", "fast", "resiliparse"]
_TITLE_END = re.compile("</title", re.IGNORECASE)
TITLE_CHARS = 500  # shown to people; a longer one is no title
_ASKED = re.compile(r"re:test\((@[^,]+),")


def cheaper(expression: XPath) -> XPath:
    """An XPath that finds the same elements at less cost.

    `re:test` is a call from libxml2 into Python, and an attribute handed over becomes an object, as does its element.
    Asked for its text alone, and only where it stands, it tells the same: no pattern of trafilatura's finds nothing.
    """
    path = _ASKED.sub(r"(\1) and re:test(string(\1),", expression.path)
    return XPath(path, namespaces={"re": trafilatura.xpaths.REGEXP_NS})


for _expressions in (value for value in vars(trafilatura.xpaths).values() if isinstance(value, list)):
    _expressions[:] = map(cheaper, _expressions)  # in place: its other modules hold these lists


@dataclass(frozen=True)
class Extracted:
    """Main text and title of a page."""

    text: str | None
    title: str | None


def extract(html: str, url: str, mode: Mode) -> Extracted:
    """The main text and title; text is None where there is none. Run it under `guard`."""
    if mode == "resiliparse":
        text = extract_plain_text(html, main_content=True, alt_texts=False, noscript=False)
        return _extracted(text, html)
    # deduplicate=True would make a page's text depend on the pages before it (trafilatura#778).
    found = trafilatura.bare_extraction(
        html,
        url=url or None,
        favor_precision=mode == "precision",
        fast=mode == "fast",
        include_comments=False,
        deduplicate=False,
    )
    return _extracted((found.text or "") if found is not None else "", html)


def _extracted(text: str, html: str) -> Extracted:
    text = text.strip().encode("utf-8", "replace").decode("utf-8")  # no lone surrogates beyond this point
    return Extracted(text, _title(html)) if text else Extracted(None, None)


def _title(html: str) -> str | None:
    """The page's <title>. trafilatura's own comes only with all metadata, dates too, which cost more than the text."""
    end = _TITLE_END.search(html)
    node = LexborHTMLParser(f"{html[: end.end()]}>").css_first("title") if end else None
    node = node or LexborHTMLParser(html).css_first("title")  # that end stood in a comment or a script
    return (" ".join(node.text().split())[:TITLE_CHARS] or None) if node is not None else None
