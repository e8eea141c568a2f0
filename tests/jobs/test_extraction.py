"""What extraction changes of trafilatura costs less and finds the same."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
import trafilatura.core
import trafilatura.external
import trafilatura.utils
import trafilatura.xpaths
from lxml.etree import XPath
from lxml.html import HtmlElement, HTMLParser, fromstring

from jobs.page import charset, extraction, warc, xpaths
from jobs.page.xpaths import Remembered, remembered

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "tests/data/sample/CC-SAMPLE-00001.warc.gz"
SHARED = sorted((REPOSITORY.parent / "shared/data/crawl").rglob("*.warc.gz"))[:1]  # pages with more classes
_SPEC = importlib.util.spec_from_file_location("unchanged", trafilatura.xpaths.__file__)
assert _SPEC and _SPEC.loader
UNCHANGED = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(UNCHANGED)
LISTS: dict[str, list[XPath]] = {name: value for name, value in vars(UNCHANGED).items() if isinstance(value, list)}


def pages(count: int) -> list[str]:
    """HTML of so many pages, from all over the files."""
    captures: list[warc.Capture] = []
    for file in [SAMPLE, *SHARED]:
        with file.open("rb") as stream:
            captures += (one for one in warc.captures(stream, 1 << 20, Counter()) if "html" in one.content_type)
    return [charset.decode(one.payload or b"", one.content_type)[0] for one in captures[:: len(captures) // count]]


def test_what_is_remembered_is_what_an_xpath_finds() -> None:
    pairs = [pair for name in LISTS for pair in zip(LISTS[name], getattr(trafilatura.xpaths, name), strict=True)]
    changed = [(before, after) for before, after in pairs if isinstance(after, Remembered)]
    assert len(changed) > 12
    for name in ("OVERALL_DISCARD_XPATH", "REMOVE_COMMENTS_AND_LISTS_XPATH", "RAW_TREE_PRUNE_XPATH"):
        assert all(isinstance(one, Remembered) for one in getattr(trafilatura.xpaths, name))  # asked of every page
    found = Counter[str]()
    for tree in filter(lambda one: one is not None, map(trafilatura.utils.load_html, pages(64))):
        for before, after in changed:
            elements = before(tree)
            assert elements == after(tree) == after(tree), before.path
            found[before.path] += len(elements)
    assert sum(count > 0 for count in found.values()) >= (10 if SHARED else 3)


def test_a_full_memory_forgets_and_a_long_attribute_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xpaths, "_REMEMBERED", 2)
    expression = XPath(".//*[self::p or self::b][contains(@class, 'x]') or @id = 'a' or not(@id)][not(./i)]")
    after = remembered(expression)
    assert isinstance(after, Remembered)
    marks = ["x]", "x] " + "y" * 1000, "y", "z", ""]
    inner = "".join(
        f"<p class='{mark}' id='{i}'><b>1</b><i class='x]'></i></p><b id=a class='{mark}'></b>"
        for i in "ab"
        for mark in marks
    )
    tree = fromstring(f"<div class='x]'>{inner}{inner}</div>")
    assert after(tree) == after(tree) == expression(tree) != []
    assert len(after._known) <= 2


@pytest.mark.parametrize(
    "path",
    [
        ".//*[self::p][1]",
        ".//*[self::p][position() = 1]",
        "(.//*[self::p])[2]",
        ".//*[./b]",
        ".//p[@class]",
        ".//*[@class]/b",
        "//*[@class]",
        ".//*[contains(., 'x')]",
        ".//*[@class = string(b)]",
    ],
)
def test_what_hangs_on_more_than_tag_and_attributes_stays_an_xpath(path: str) -> None:
    expression = XPath(path)
    assert remembered(expression) is expression


def test_the_attribute_that_comes_first_is_told_from_the_other() -> None:
    tree = fromstring("<div><b id=x class=cookie>1</b><b class=cookie id=x>2</b><b id=cookie class=x>3</b></div>")
    expression = XPath(".//*[re:test(@id|@class, 'cookie')]", namespaces={"re": UNCHANGED.REGEXP_NS})
    assert [one.text for one in remembered(expression)(tree)] == [one.text for one in expression(tree)] == ["2", "3"]


def test_no_pattern_is_found_in_the_text_of_an_attribute_that_is_absent() -> None:
    patterns = re.findall(r"re:test\([^,]+, *'([^']*)'", " ".join(one.path for some in LISTS.values() for one in some))
    assert len(patterns) > 40
    assert not [pattern for pattern in patterns if re.search(pattern, "")]


def test_the_first_of_all_is_one_element() -> None:
    tree = fromstring("<div><p/><b class=x>1</b><b class=x>2</b></div>")
    expression = XPath("(.//*[self::b][@class='x'])[1]")
    assert [one.text for one in remembered(expression)(tree)] == [one.text for one in expression(tree)] == ["1"]


@pytest.mark.parametrize("mode", ["precision", "default", "fast"])
def test_the_text_is_that_of_lxmls_own_classes(mode: extraction.Mode) -> None:
    html = pages(16)
    texts = [extraction.extract(page, "", mode) for page in html]
    with pytest.MonkeyPatch.context() as patch:
        of_lxml = HTMLParser(
            collect_ids=False, default_doctype=False, encoding="utf-8", remove_comments=True, remove_pis=True
        )
        patch.setattr(trafilatura.utils, "HTML_PARSER", of_lxml)
        assert [extraction.extract(page, "", mode) for page in html] == texts
    assert sum(one.text is not None for one in texts) > 10


@pytest.mark.parametrize("mode", ["precision", "default"])
def test_readability_is_asked_where_it_can_change_the_text(
    mode: extraction.Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    html, asked, of_readability = pages(48), list[bool](), trafilatura.external.try_readability

    def counted(page: HtmlElement) -> HtmlElement:
        asked.append(len(page) > 0)
        return of_readability(page)

    monkeypatch.setattr(trafilatura.external, "try_readability", counted)
    texts = [extraction.extract(page, "", mode) for page in html]
    assert (0.2 if SHARED else 0.02) < sum(asked) / len(asked) < 0.8  # the sample's pages are mostly text
    monkeypatch.setattr(trafilatura.core, "compare_extraction", trafilatura.external.compare_extraction)
    assert [extraction.extract(page, "", mode) for page in html] == texts
