"""trafilatura's XPath expressions with a memory: they find the same elements at half the cost.

A good part of its time goes into asking each element of a page, and of every copy of it, for dozens of words in its
class. The verdict follows from tag and attributes, which repeat: one element is asked by XPath, the next is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile

import trafilatura.xpaths
from lxml.etree import XPath, _Element

# Elements below one, chosen by predicates; the first of them all, where the whole stands in brackets.
_FORM = re.compile(r"\s*(\()?\s*\.//\*(?P<predicates>\[.*\])\s*(?(1)\)\[1\])\s*", re.DOTALL)
_STRING, _ATTRIBUTE = re.compile(r"'[^']*'"), re.compile(r"@([\w-]+)")
# A predicate, its strings taken out, on an element's tag and attributes alone; one that is but a choice of tags; one
# that counts.
_OWN = re.compile(r"(?:self::\w+|@[\w-]+|and\b|or\b|(?:not|contains|starts-with|translate|re:test)\(|[\s'()|,=])+")
_TAGS = re.compile(r"\s*self::\w+(?:\s+or\s+self::\w+)*\s*")
_COUNTS = re.compile(r".*\b(?:position|last|count|sum|number|string-length)\(.*|[\s\d]+", re.DOTALL)
_TEST = re.compile(r"re:test\((@[^,]+),")
_REMEMBERED, _LONG = 4096, 512  # verdicts of an expression, and characters of one's attributes: some 20 MB for all


class Remembered:
    """An XPath on the elements below one, where tag and attributes decide."""

    def __init__(self, own: Sequence[str], further: Sequence[str], first: bool) -> None:
        """Predicates on tag and attributes alone, those on more, and whether the first element is enough."""
        bare = _STRING.sub("''", " ".join(own))
        self._tags = re.findall(r"self::(\w+)", own[0]) if _TAGS.fullmatch(own[0]) else ["*"]
        self._attributes = sorted(set(_ATTRIBUTE.findall(bare)))
        self._by_tag = "self::" in " ".join(own[self._tags != ["*"] :])
        self._by_order = "|" in bare  # of `@id|@class`, XPath takes the one that comes first
        self._own, self._further, self._first = _chosen(own), _chosen(further), first
        self._known: dict[tuple[str | None, ...], bool] = {}

    def __call__(self, tree: _Element) -> list[_Element]:
        """The elements, in the order of the document."""
        found, known, attributes = [], self._known, self._attributes
        for element in tree.iterdescendants(*self._tags):
            key: tuple[str | None, ...] = tuple(map(element.get, attributes))
            if self._by_tag:
                key += (str(element.tag),)
            if self._by_order:
                key += tuple(map(str, element.keys()))
            holds = known.get(key)
            if holds is None:
                holds = self._ask(element, key)
            if holds and self._further(element):
                found.append(element)
                if self._first:
                    break
        return found

    def _ask(self, element: _Element, key: tuple[str | None, ...]) -> bool:
        holds = bool(self._own(element))
        if len("".join(filter(None, key))) < _LONG:
            if len(self._known) == _REMEMBERED:
                self._known.clear()
            self._known[key] = holds
        return holds


def _chosen(predicates: Sequence[str]) -> XPath:
    """An element, if all hold. An attribute handed over as text costs no object, and no pattern finds an absent one."""
    path = "self::*" + "".join(f"[{one}]" for one in predicates)
    return XPath(_TEST.sub(r"(\1) and re:test(string(\1),", path), namespaces={"re": trafilatura.xpaths.REGEXP_NS})


def _predicates(path: str) -> list[str]:
    """What stands in the outermost brackets of `[…][…]`."""
    hidden = _STRING.sub(lambda string: "'" * len(string[0]), path)
    ends, depth = [0], 0
    for at, character in enumerate(hidden):
        depth += (character == "[") - (character == "]")
        if character == "]" and depth == 0:
            ends.append(at + 1)
    return [path[begin:end].strip()[1:-1] for begin, end in pairwise(ends)]


def remembered(expression: XPath) -> XPath | Remembered:
    """The same with a memory, where it begins with predicates on tag and attributes alone."""
    form = _FORM.fullmatch(expression.path)
    predicates = _predicates(form["predicates"]) if form else []
    own = list(takewhile(lambda one: _OWN.fullmatch(_STRING.sub("''", one)), predicates))
    if not (form and own) or any(map(_COUNTS.fullmatch, predicates)):
        return expression
    return Remembered(own, predicates[len(own) :], first=bool(form[1]))
