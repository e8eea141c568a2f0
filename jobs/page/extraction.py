"""Main text of a page by trafilatura, or by resiliparse."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import trafilatura
from resiliparse.extract.html2text import extract_plain_text
from selectolax.lexbor import LexborHTMLParser
from trafilatura.settings import Extractor

Mode = Literal["precision", "default", "fast", "resiliparse"]
_TITLE_END = re.compile("</title", re.IGNORECASE)
TITLE_CHARS = 500  # kept of a title; it is shown to people


@dataclass(frozen=True)
class Extracted:
    """Main text and title of a page."""

    text: str | None
    title: str | None


def extract(html: str, url: str, mode: Mode, default_below: int = 0) -> Extracted:
    """The main text and title; both are None where there is no text. Run it under `guard`: it can hang.

    `precision` takes whole articles for boilerplate on some pages. Where it gives fewer characters than
    `default_below`, the text of `default` is taken if it is longer.
    """
    if mode == "resiliparse":
        return _extracted(extract_plain_text(html, main_content=True, alt_texts=False, noscript=False), html)
    text = _trafilatura(html, url, mode)
    if mode == "precision" and len(text) < default_below:
        text = max(text, _trafilatura(html, url, "default"), key=len)
    return _extracted(text, html)


def _trafilatura(html: str, url: str, mode: Mode) -> str:
    document = trafilatura.bare_extraction(html, url=url or None, options=_options(mode))
    return (document.text or "") if document is not None else ""


@cache
def _options(mode: Mode) -> Extractor:
    # dedup=True would make a page's text depend on the pages before it (trafilatura#778).
    return Extractor(
        output_format="python", precision=mode == "precision", fast=mode == "fast", comments=False, dedup=False
    )


def _extracted(text: str, html: str) -> Extracted:
    text = text.strip().encode("utf-8", "replace").decode("utf-8")  # no lone surrogates beyond this point
    return Extracted(text, _title(html)) if text else Extracted(None, None)


def _title(html: str) -> str | None:
    """The page's <title>.

    trafilatura finds it only with all other metadata, of which the dates cost more than the text.
    """
    end = _TITLE_END.search(html)
    node = LexborHTMLParser(f"{html[: end.end()]}>").css_first("title") if end else None
    node = node or LexborHTMLParser(html).css_first("title")  # the end tag was in a comment or a script
    return (" ".join(node.text().split())[:TITLE_CHARS] or None) if node is not None else None
