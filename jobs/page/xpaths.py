"""trafilatura's XPath expressions with a memory: they find the same elements at a third of the cost.

A good part of its time goes into asking each element of a page, and of every copy of it, for dozens of words in its
class. The verdict follows from tag and attributes, which repeat: one element is asked, by the expression put into
Python, and of the next with the same the answer is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise, takewhile
from typing import Any

import trafilatura.xpaths
from lxml.etree import XPath, _Element

# Elements below one, chosen by predicates; the first of them all, where the whole stands in brackets.
_FORM = re.compile(r"\s*(\()?\s*\.//\*(?P<predicates>\[.*\])\s*(?(1)\)\[1\])\s*", re.DOTALL)
_NAMESPACES = {"re": trafilatura.xpaths.REGEXP_NS}
_STRING, _ATTRIBUTE = re.compile(r"'[^']*'"), re.compile(r"@([\w-]+)")
_STEP = re.compile(r"\s*\.//(?P<tag>\*|\w+)(?P<predicates>(?:\[.*\])?)\s*", re.DOTALL)  # one path of a union
# What a predicate on an element's tag and attributes alone is made of; one that is but a choice of tags; one that
# counts.
_TOKEN = re.compile(
    r"(?P<string>'[^']*')|self::(?P<tag>\w+)|(?P<attributes>@[\w-]+(?:(?:\s*\|\s*@[\w-]+)+(?=\s*[,)]))?)"
    r"|(?P<function>contains|starts-with|translate|re:test|not)(?=\()|(?P<equal>=(?=\s*'))|(?P<rest>and\b|or\b|[\s(),])"
)
_OWN = re.compile(f"(?:{_TOKEN.pattern})+")
_TAGS = re.compile(r"\s*self::\w+(?:\s+or\s+self::\w+)*\s*")
_COUNTS = re.compile(r".*\b(?:position|last|count|sum|number|string-length)\(.*|[\s\d]+", re.DOTALL)
_pattern = cache(lambda pattern, any_case: re.compile(pattern, re.IGNORECASE if any_case else 0).search)
_FUNCTIONS = {
    "contains": lambda value, part: part in (value or ""),
    "starts_with": lambda value, part: (value or "").startswith(part),
    "translate": lambda value, old, new: (value or "").translate(
        {ord(letter): new[at : at + 1] for at, letter in reversed(list(enumerate(old)))}
    ),
    "test": lambda value, pattern, flags="": _pattern(pattern, "i" in flags)(value or "") is not None,
}
_REMEMBERED, _LONG = 4096, 512  # verdicts of an expression, and characters of one's attributes: some 20 MB for all


class Remembered:
    """An XPath on the elements below one, where tag and attributes decide."""

    def __init__(self, own: Sequence[str], further: Sequence[str], first: bool, siblings: bool) -> None:
        """Predicates on tag and attributes alone, those on more, and whether the first element is enough: of them all,
        or of those with the same parent.
        """
        self._tags = re.findall(r"self::(\w+)", own[0]) if _TAGS.fullmatch(own[0]) else ["*"]
        self._by_tag = "self::" in " ".join(own[self._tags != ["*"] :])
        self._own, self._values = _compiled(own)
        self._attributes = sorted({name for names in self._values for name in names})
        self._by_order = any(len(names) > 1 for names in self._values)
        self._further = XPath("self::*" + "".join(f"[{one}]" for one in further), namespaces=_NAMESPACES)
        self._first, self._siblings = first, siblings
        self._known: dict[tuple[str | None, ...], bool] = {}

    def __call__(self, tree: _Element) -> list[_Element]:
        """The elements, in the order of the document."""
        found, known, attributes, by_order, by_tag = [], self._known, self._attributes, self._by_order, self._by_tag
        for element in tree.iterdescendants(*self._tags):
            get = element.get
            key: tuple[str | None, ...] = tuple([get(name) for name in attributes])  # half of what map takes
            if by_order and len(key) - key.count(None) > 1:
                key += tuple(map(str, element.keys()))
            if by_tag:
                key += (str(element.tag),)
            holds = known.get(key)
            if holds is None:
                holds = self._ask(element, key)
            if holds and self._further(element):
                found.append(element)
                if self._first:
                    break
        if self._siblings:
            firsts: dict[_Element | None, _Element] = {}
            for element in found:
                firsts.setdefault(element.getparent(), element)
            return list(firsts.values())
        return found

    def _ask(self, element: _Element, key: tuple[str | None, ...]) -> bool:
        attributes = dict(zip(self._attributes, key, strict=False))
        values = [attributes[names[0]] if len(names) == 1 else _first_of(element, names) for names in self._values]
        holds = bool(self._own(element.tag, *(_EMPTY if value == "" else value for value in values)))
        if len("".join(filter(None, key))) < _LONG:
            if len(self._known) == _REMEMBERED:
                self._known.clear()
            self._known[key] = holds
        return holds


class _Empty(str):
    """An attribute that is there and empty, which holds as a condition."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_EMPTY = _Empty()


def _first_of(element: _Element, names: Sequence[str]) -> str | None:
    """The attribute of these names that comes first; None where the element has none of them."""
    return next((value for name, value in element.items() if name in names), None)


def _compiled(predicates: Sequence[str]) -> tuple[Callable[..., Any], list[tuple[str, ...]]]:
    """Whether all of them hold, as a function of an element's tag and values, and of which attributes these are."""
    values: dict[tuple[str, ...], str] = {}

    def python(token: re.Match[str]) -> str:
        if token["string"]:
            return repr(token["string"][1:-1])
        if token["tag"]:
            return f"(tag == {token['tag']!r})"
        if token["attributes"]:
            names = tuple(_ATTRIBUTE.findall(token["attributes"]))
            return values.setdefault(names, f"value_{len(values)}")
        if token["function"]:
            return {"re:test": "test"}.get(token["function"], token["function"].replace("-", "_"))
        return "==" if token["equal"] else token["rest"]

    source = " and ".join(f"({_TOKEN.sub(python, one)})" for one in predicates)
    return eval(f"lambda tag, {', '.join(values.values())}: {source}", dict(_FUNCTIONS)), list(values)


def _outermost(path: str, ends_with: str) -> list[str]:
    """The path cut after each of these characters that stands in no brackets but those it ends, and the rest."""
    hidden = _STRING.sub(lambda string: "'" * len(string[0]), path)
    ends, depth = [0], 0
    for at, character in enumerate(hidden):
        depth += (character in "[(") - (character in "])")
        if character == ends_with and depth == 0:
            ends.append(at + 1)
    return [path[begin:end] for begin, end in pairwise([*ends, len(path)])]


def _predicates(path: str) -> list[str]:
    """What stands in the outermost brackets of `[…][…]`."""
    return [part.strip()[1:-1] for part in _outermost(path, "]")[:-1]]


def _united(path: str) -> str:
    """`.//a|.//b[c]` as `.//*[…]`; any other path as it is."""
    steps = [_STEP.fullmatch(part.removesuffix("|")) for part in _outermost(path, "|")]
    if len(steps) < 2:
        return path
    choices = []
    for step in steps:
        if step is None:
            return path
        tag = [] if step["tag"] == "*" else [f"self::{step['tag']}"]
        choices.append(" and ".join([*tag, *(f"({one})" for one in _predicates(step["predicates"]))]))
    return f".//*[{' or '.join(choices)}]"


def remembered(expression: XPath) -> XPath | Remembered:
    """The same with a memory, where it begins with predicates on tag and attributes alone, or unites such paths."""
    form = _FORM.fullmatch(_united(expression.path))
    predicates = _predicates(form["predicates"]) if form else []
    siblings = predicates[1:] != [] and predicates[-1] == "1"
    predicates = predicates[:-1] if siblings else predicates
    own = list(takewhile(_OWN.fullmatch, predicates))
    if not (form and own) or any(map(_COUNTS.fullmatch, predicates)):
        return expression
    return Remembered(own, predicates[len(own) :], bool(form[1]), siblings)
