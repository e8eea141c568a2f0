"""Main text of a page by trafilatura, or by resiliparse."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

import trafilatura
import trafilatura.core
import trafilatura.utils
import trafilatura.xpaths
from lxml.etree import ElementDefaultClassLookup, _Element, strip_elements, tostring
from lxml.html import HtmlElement
from resiliparse.extract.html2text import extract_plain_text
from selectolax.lexbor import LexborHTMLParser
from trafilatura.external import compare_extraction
from trafilatura.settings import Extractor

from jobs.page import xpaths

Mode = Literal["precision", "default", "fast", "resiliparse"]
_TITLE_END = re.compile("</title", re.IGNORECASE)
TITLE_CHARS = 500  # shown to people; a longer one is no title


def _compared(
    cleaned: HtmlElement, raw: HtmlElement, body: _Element, text: str, options: Extractor
) -> tuple[_Element, str]:
    """trafilatura's comparison with what readability finds, which is not asked where the answer is known.

    readability is taken where it has more than twice the text, or where ours has no paragraph with text, or fewer
    paragraphs than tables; and it cannot have more than the page, scripts aside.
    """
    if text and options.focus != "recall":
        strip_elements(raw, "script", "style", "fencedframe", with_tail=False)  # which it does first
        of_page = " ".join(tostring(raw, method="text", encoding="unicode").split())
        most = len(of_page) + len("VIDEO ") * len(raw.findall(".//iframe"))  # it writes that into some
        paragraphs, tables = (len(body.findall(f".//{tag}")) for tag in ("p", "table"))
        if most <= 2 * len(text) and tables <= paragraphs and body.xpath("boolean(.//p//text())"):
            raw = HtmlElement()
    chosen: tuple[_Element, str] = compare_extraction(cleaned, raw, body, text, options)
    return chosen


def _prepared(tree: HtmlElement, options: Extractor, url: str | None) -> tuple[HtmlElement, HtmlElement]:
    """trafilatura's cleaned and converted page, with a copy from before the conversion only where one is compared."""
    cleaned = trafilatura.core.tree_cleaning(copy(tree), options)
    backup = cleaned if options.fast and not options.comments else copy(cleaned)
    return trafilatura.core.convert_tags(cleaned, options, url), backup


class _Invalid:
    """trafilatura's pattern for characters that XML has not, which most pages lack: they are sought one by one."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._characters = [character for character in map(chr, range(1 << 16)) if pattern.match(character)]

    def sub(self, replacement: str, text: str) -> str:
        """As that of the pattern."""
        return self._pattern.sub(replacement, text) if any(map(text.__contains__, self._characters)) else text


class _Node(HtmlElement):  # type: ignore[misc]
    """An element whose text, where it holds no other, is had without a question to libxml2."""

    def text_content(self) -> str:
        text: str = super().text_content() if len(self) else self.text or ""
        return text


for _expressions in (value for value in vars(trafilatura.xpaths).values() if isinstance(value, list)):
    _expressions[:] = map(xpaths.remembered, _expressions)  # in place: its other modules hold these lists
_baseline: Any = import_module("trafilatura.baseline")  # whose name in the package is a function's
_baseline.BASIC_CLEAN_XPATH = xpaths.remembered(_baseline.BASIC_CLEAN_XPATH)
trafilatura.core.compare_extraction = _compared
trafilatura.core._prepare_tree = _prepared
trafilatura.utils.INVALID_XML_CHARS = _Invalid(trafilatura.utils.INVALID_XML_CHARS)
# lxml.html chooses an element's class in Python whenever one is looked at; only parts of forms would get another.
trafilatura.utils.HTML_PARSER.set_element_class_lookup(ElementDefaultClassLookup(element=_Node))


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
    found = trafilatura.bare_extraction(html, url=url or None, options=_options(mode))
    return _extracted((found.text or "") if found is not None else "", html)


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
    """The page's <title>. trafilatura's own comes only with all metadata, dates too, which cost more than the text."""
    end = _TITLE_END.search(html)
    node = LexborHTMLParser(f"{html[: end.end()]}>").css_first("title") if end else None
    node = node or LexborHTMLParser(html).css_first("title")  # that end stood in a comment or a script
    return (" ".join(node.text().split())[:TITLE_CHARS] or None) if node is not None else None
