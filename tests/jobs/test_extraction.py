"""Main text and title of a page; what `jobs.page.faster` changes of trafilatura costs less and finds the same."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trafilatura.core
import trafilatura.external
import trafilatura.utils
import trafilatura.xpaths
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml.etree import Element, SubElement, XPath
from lxml.html import HtmlElement, HTMLParser, fromstring
from trafilatura.settings import BASIC_CLEAN_XPATH

from jobs.archive import warc
from jobs.archive.response import Capture
from jobs.page import charset, extraction, faster
from jobs.page.faster import xpaths
from jobs.page.faster.xpaths import Compiled, compiled
from tests.jobs.support import PROSE

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "tests/data/sample/CC-SAMPLE-00001.warc.gz"
SHARED = sorted((REPOSITORY.parent / "shared/data/crawl").rglob("*.warc.gz"))[:1]  # pages with more classes
_SPEC = importlib.util.spec_from_file_location("unchanged", trafilatura.xpaths.__file__)
assert _SPEC and _SPEC.loader
UNCHANGED = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(UNCHANGED)
LISTS: dict[str, list[XPath]] = {name: value for name, value in vars(UNCHANGED).items() if isinstance(value, list)}

faster.install()
EXPRESSIONS = [*(one for some in LISTS.values() for one in some), BASIC_CLEAN_XPATH]


def pages(count: int) -> list[str]:
    """HTML of so many pages, from all over the files."""
    captures: list[Capture] = []
    for file in [SAMPLE, *SHARED]:
        with file.open("rb") as stream:
            captures += (one for one in warc.captures(stream, 1 << 20, Counter()) if "html" in one.content_type)
    return [charset.decode(one.payload or b"", one.content_type)[0] for one in captures[:: len(captures) // count]]


def test_a_compiled_xpath_finds_the_same() -> None:
    pairs = [pair for name in LISTS for pair in zip(LISTS[name], getattr(trafilatura.xpaths, name), strict=True)]
    pairs.append((BASIC_CLEAN_XPATH, import_module("trafilatura.baseline").BASIC_CLEAN_XPATH))
    changed = [(before, after) for before, after in pairs if isinstance(after, Compiled)]
    assert len(changed) > 20
    for name in ("OVERALL_DISCARD_XPATH", "REMOVE_COMMENTS_AND_LISTS_XPATH", "RAW_TREE_PRUNE_XPATH"):
        assert all(isinstance(one, Compiled) for one in getattr(trafilatura.xpaths, name))  # asked of every page
    found = Counter[str]()
    for tree in filter(lambda one: one is not None, map(trafilatura.utils.load_html, pages(64))):
        for before, after in changed:
            elements = before(tree)
            assert elements == after(tree) == after(tree), before.path
            found[before.path] += len(elements)
    assert sum(count > 0 for count in found.values()) >= (10 if SHARED else 3)


PATHS = "".join(one.path for one in EXPRESSIONS)
WORDS = sorted({part for string in re.findall("'([^']+)'", PATHS) for part in string.split("|")})
VALUES = st.lists(st.sampled_from(["", " ", *WORDS]) | st.sampled_from(WORDS).map(str.upper), max_size=3).map("".join)
NAMES, TAGS = (sorted(set(re.findall(pattern, PATHS))) for pattern in (r"@([\w-]+)", r"self::(\w+)"))
AFTER = list(map(compiled, EXPRESSIONS))
ELEMENTS = st.tuples(st.sampled_from(TAGS), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))


@settings(deadline=None)
@given(st.lists(ELEMENTS, min_size=1, max_size=12), st.randoms())
def test_whatever_the_attributes_an_xpath_finds_the_same(elements: list[Any], rng: Random) -> None:
    tree = Element("body")
    nodes = [tree]
    for tag, attributes in elements:
        nodes.append(SubElement(rng.choice(nodes), tag, attributes))
    for before, after in zip(EXPRESSIONS, AFTER, strict=True):  # what one example leaves in the cache, the next finds
        assert after(tree) == before(tree), before.path


def test_characters_that_xml_has_not_go_wherever_they_stand() -> None:
    ours = trafilatura.utils.INVALID_XML_CHARS
    assert isinstance(ours, faster._Invalid)
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    left = ours._pattern.sub("", every)
    assert ours.sub("", every) == left != every
    assert ours.sub("", left) is left
    assert all(ours.sub("", f"a{gone}b") == "ab" for gone in set(every) - set(left))


def test_the_text_of_a_leaf_is_its_own() -> None:
    tree = fromstring("<div>a<p>b<i></i>c</p>d<b>e&amp;é</b>f<br>g</div>", parser=trafilatura.utils.HTML_PARSER)
    assert {type(one) for one in tree.iter()} == {faster._Node}
    assert [one.text_content() for one in tree.iter()] == ["abcde&éfg", "bc", "", "e&é", ""]


PIECES = ["a", "bk", "s-", " a", "K", "é", "", "^a", "^bk", "^", "[ab|s]k", "a?s", "(?:a|^s)k", "a\\.", "k$"]
PATTERNS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("|".join)
FLAGS = st.sampled_from(["", ", 'i'"])


@settings(deadline=None, max_examples=1000)
@example("(?i)s-|bk", "", "BK")
@example(r"a\|s|K", "", "s")
@example(r"\x41", ", 'i'", "a")
@example("(?-i:k)|s", ", 'i'", "K")
@given(PATTERNS | PATTERNS.map("(?i)".__add__), FLAGS, st.text("abksABKS- .|éſK", max_size=4))
def test_a_pattern_is_found_as_an_xpath_finds_it(pattern: str, flags: str, value: str) -> None:
    tree = Element("body")
    SubElement(tree, "p", {"class": value})
    expression = XPath(f".//*[re:test(@class, '{pattern}'{flags})]", namespaces={"re": UNCHANGED.REGEXP_NS})
    after = compiled(expression)
    assert isinstance(after, Compiled)
    assert after(tree) == expression(tree)


def test_a_full_cache_is_cleared_and_a_long_attribute_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xpaths, "_CACHED", 2)
    expression = XPath(".//*[self::p or self::b][contains(@class, 'x]') or @id = 'a' or not(@id)][not(./i)]")
    after = compiled(expression)
    assert isinstance(after, Compiled)
    marks = ["x]", "x] " + "y" * 1000, "y", "z", ""]
    inner = "".join(
        f"<p class='{mark}' id='{i}'><b>1</b><i class='x]'></i></p><b id=a class='{mark}'></b>"
        for i in "ab"
        for mark in marks
    )
    tree = fromstring(f"<div class='x]'>{inner}{inner}</div>")
    assert after(tree) == after(tree) == expression(tree) != []
    assert len(after._cache) <= 2


@pytest.mark.parametrize(
    "path",
    [
        ".//*[self::p][2]",
        ".//*[self::p][position() = 1]",
        "(.//*[self::p])[2]",
        ".//*[./b]",
        ".//p[@class]",
        ".//*[@class]/b",
        "//*[@class]",
        ".//*[contains(., 'x')]",
        ".//*[@class = string(b)]",
        ".//*[@class = @id]",
        ".//*[@class|@id = 'x']",
        ".//*[translate(@class, 'X', 'x') = 'x']",
        ".//p[@class]|//b",
        ".//p[1]|.//b[@class]",
    ],
)
def test_what_hangs_on_more_than_tag_and_attributes_stays_an_xpath(path: str) -> None:
    expression = XPath(path)
    assert compiled(expression) is expression


def test_the_attribute_that_comes_first_is_told_from_the_other() -> None:
    tree = fromstring("<div><b id=x class=cookie>1</b><b class=cookie id=x>2</b><b id=cookie class=x>3</b></div>")
    expression = XPath(".//*[re:test(@id|@class, 'cookie')]", namespaces={"re": UNCHANGED.REGEXP_NS})
    assert [one.text for one in compiled(expression)(tree)] == [one.text for one in expression(tree)] == ["2", "3"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("(.//*[self::b][@class='x'])[1]", ["1"]),
        (".//*[self::b][@class='x'][1]", ["1", "4"]),  # XPath's way: of those with the same parent
        (".//*[self::b][@class='x'][./i][1]", ["2"]),
        (".//i|.//b[@class='y' or @id]|.//b[@class][@class='x']", ["1", "2", "i", "3", "4", "5"]),
        (".//b[not(@class)]|.//b[@class = '']|.//b[@class and not(contains(@class, 'x'))]", ["3", "6", "7"]),
        (
            ".//*[contains(translate(@class, 'XYx', 'xy'), 'y') or starts-with(translate(@id, 'ab', 'b'), 'b')]",
            ["3", "5"],
        ),
    ],
)
def test_forms_of_expressions(path: str, found: list[str]) -> None:
    first = "<p><b class=x>1</b><b class=x>2<i>i</i></b><b class=y>3</b></p>"
    tree = fromstring(f"<div>{first}<p><b class=x>4</b><b class='x z' id=a>5</b><b>6</b><b class=''>7</b></p></div>")
    expression = XPath(path)
    after = compiled(expression)
    assert isinstance(after, Compiled)
    assert [one.text for one in after(tree)] == [one.text for one in expression(tree)] == found


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


def test_the_text_of_a_page_does_not_depend_on_the_pages_before_it() -> None:
    html = f"<html><body><article><p>{PROSE}</p><p>{PROSE[::2]}</p></article></body></html>"
    first, second = (extraction.extract(html, "http://x.test/", "precision") for _ in range(2))
    assert first == second and first.text and PROSE[:60] in first.text


@pytest.mark.parametrize("mode", ["precision", "default", "fast", "resiliparse"])
def test_every_extractor_keeps_the_text_and_leaves_the_frame(mode: extraction.Mode) -> None:
    body = "".join(f"<p>The boats lay close to the wall, and number {n} was the last of them.</p>" for n in range(20))
    frame = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/x'>Shop</a></li></ul></nav>"
    html = f"<html><head><title>Pier</title></head><body>{frame}<main><article>{body}</article></main></body></html>"
    found = extraction.extract(html, "http://x.test/", mode)
    assert found.title == "Pier" and found.text is not None
    assert "number 19 was the last" in found.text and "Shop" not in found.text and "<" not in found.text


def test_where_precision_loses_a_page_default_is_asked() -> None:
    html = pages(200)
    changed = 0
    for page in html:
        precise, with_limit = (extraction.extract(page, "", "precision", below) for below in (0, 500))
        if len(precise.text or "") >= 500:
            assert with_limit == precise
        else:
            texts = [precise.text or "", extraction.extract(page, "", "default").text or ""]
            assert (with_limit.text or "") == max(texts, key=len)
            changed += with_limit != precise
    assert changed > 5
