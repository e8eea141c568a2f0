"""trafilatura 2.3.1 at about half the cost, with the same texts: `install()` replaces parts of it in this process.

It refuses another version, since each replacement was checked against the code that it replaces. A test holds the
texts equal to the byte. `jobs.page.extraction` also works without it.
"""

from __future__ import annotations

import re
from copy import copy
from functools import cache
from importlib import import_module
from typing import Any

import trafilatura
import trafilatura.core
import trafilatura.utils
import trafilatura.xpaths
from lxml.etree import ElementDefaultClassLookup, _Element, strip_elements, tostring
from lxml.html import HtmlElement
from trafilatura.external import compare_extraction
from trafilatura.settings import Extractor

from jobs.page.faster import xpaths
from pipeline.errors import MachineError

VERSION = "2.3.1"


@cache
def install() -> None:
    """Replace the parts, once per process. Raises `MachineError` for another trafilatura than `VERSION`."""
    if trafilatura.__version__ != VERSION:
        raise MachineError(
            f"trafilatura {trafilatura.__version__} is installed, and jobs/page/faster was made for {VERSION}",
            f"install trafilatura=={VERSION}",
        )
    for expressions in (value for value in vars(trafilatura.xpaths).values() if isinstance(value, list)):
        expressions[:] = map(xpaths.compiled, expressions)  # in place: its other modules have imported these lists
    baseline: Any = import_module("trafilatura.baseline")  # the attribute of this name is a function
    baseline.BASIC_CLEAN_XPATH = xpaths.compiled(baseline.BASIC_CLEAN_XPATH)
    trafilatura.core.compare_extraction = _compared
    trafilatura.core._prepare_tree = _prepared
    trafilatura.utils.INVALID_XML_CHARS = _Invalid(trafilatura.utils.INVALID_XML_CHARS)
    # lxml.html chooses the class of an element in Python at each access; only parts of forms would get another one.
    trafilatura.utils.HTML_PARSER.set_element_class_lookup(ElementDefaultClassLookup(element=_Node))


def _compared(
    cleaned: HtmlElement, raw: HtmlElement, body: _Element, text: str, options: Extractor
) -> tuple[_Element, str]:
    """trafilatura's comparison with readability's text, without running readability where it cannot win.

    It wins with more than twice the text, or where trafilatura's has no paragraph with text, or fewer paragraphs
    than tables; and its text cannot be longer than that of the page without scripts.
    """
    if text and options.focus != "recall":
        strip_elements(raw, "script", "style", "fencedframe", with_tail=False)  # as readability does first
        of_page = " ".join(tostring(raw, method="text", encoding="unicode").split())
        most = len(of_page) + len("VIDEO ") * len(raw.findall(".//iframe"))  # readability writes it into some
        paragraphs, tables = (len(body.findall(f".//{tag}")) for tag in ("p", "table"))
        if most <= 2 * len(text) and tables <= paragraphs and body.xpath("boolean(.//p//text())"):
            raw = HtmlElement()  # in which readability finds nothing, at once
    chosen: tuple[_Element, str] = compare_extraction(cleaned, raw, body, text, options)
    return chosen


def _prepared(tree: HtmlElement, options: Extractor, url: str | None) -> tuple[HtmlElement, HtmlElement]:
    """trafilatura's cleaned and converted page; the copy from before the conversion is made only where it is used."""
    cleaned = trafilatura.core.tree_cleaning(copy(tree), options)
    backup = cleaned if options.fast and not options.comments else copy(cleaned)
    return trafilatura.core.convert_tags(cleaned, options, url), backup


class _Invalid:
    """trafilatura's pattern for characters that XML forbids. Most pages have none: a search for each is faster."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._characters = [character for character in map(chr, range(1 << 16)) if pattern.match(character)]

    def sub(self, replacement: str, text: str) -> str:
        """As `re.Pattern.sub`."""
        return self._pattern.sub(replacement, text) if any(map(text.__contains__, self._characters)) else text


class _Node(HtmlElement):  # type: ignore[misc]
    """An element that returns the text of a leaf without calling libxml2."""

    def text_content(self) -> str:
        text: str = super().text_content() if len(self) else self.text or ""
        return text
