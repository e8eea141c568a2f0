"""Compiles XPath predicates of trafilatura to Python functions, and caches their results by tag and attributes.

A good part of trafilatura's time is spent on dozens of substring tests on the class of each element, of a page and of
every copy of it. Their result depends on tag and attributes alone, which repeat. So the predicate is compiled to Python
source, evaluated once, and its result is looked up for the next element with the same tag and attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise, product, takewhile
from typing import Any

import trafilatura.xpaths
from lxml.etree import XPath, _Element

# Descendants chosen by predicates; the first one only, where the whole is in parentheses: `(.//*[…])[1]`.
_FORM = re.compile(r"\s*(\()?\s*\.//\*(?P<predicates>\[.*\])\s*(?(1)\)\[1\])\s*", re.DOTALL)
_NAMESPACES = {"re": trafilatura.xpaths.REGEXP_NS}
_STRING, _ATTRIBUTE = re.compile(r"'[^']*'"), re.compile(r"@([\w-]+)")
_STEP = re.compile(r"\s*\.//(?P<tag>\*|\w+)(?P<predicates>(?:\[.*\])?)\s*", re.DOTALL)  # one path of a union
_LITERAL = re.compile(r"[\w -]+")  # a pattern that matches itself only
_ODD = re.compile(r"\\|\(\?[^:=!]")  # escapes and flags, which can change the meaning of a bar or of lower case
_NAMES = r"@[\w-]+(?:\s*\|\s*@[\w-]+)*"
# The parts of a predicate on tag and attributes alone.
_TOKEN = re.compile(
    r"(?P<function>contains|starts-with|re:test)\(\s*"
    rf"(?:(?P<names>{_NAMES})|translate\(\s*(?P<translated>{_NAMES})\s*,\s*'(?P<old>[^']*)'\s*,\s*'(?P<new>[^']*)'\s*\))"
    r"\s*,\s*'(?P<part>[^']*)'\s*(?:,\s*'(?P<flags>i?)'\s*)?\)"
    r"|@(?P<attribute>[\w-]+)(?=\s*(?:\)|and\b|or\b|=\s*'|$))(?P<equal>\s*=\s*'(?P<value>[^']*)')?"
    r"|self::(?P<tag>\w+)|(?P<rest>not(?=\()|and\b|or\b|[\s()])"
)
_OWN = re.compile(f"(?:{_TOKEN.pattern})+")  # a predicate made of these parts only
# A predicate that only chooses tags, and one that counts.
_TAGS = re.compile(r"\s*self::\w+(?:\s+or\s+self::\w+)*\s*")
_COUNTS = re.compile(r".*\b(?:position|last|count|sum|number|string-length)\(.*|[\s\d]+", re.DOTALL)
# Results cached per expression, and characters of the attributes of one: some 20 MB for all expressions.
_CACHED, _LONG = 4096, 512
# This loop is generated for each expression: a call, or a loop over the attributes, would cost as much as the rest.
_WALK = """
def walk(tree):
    for element in tree.iterdescendants({tags}):
        get = element.get
        key = ({key})
        result = cache.get(key)
        if result is None:
            result = evaluate(element, key)
        if result{further}:
            yield element
"""
# To an XPath function a missing attribute is an empty string.
_PREDICATE = """
def holds({parameters}):
    {texts}
    return bool({expression})
"""


class Compiled:
    """An XPath that chooses descendants of an element by predicates on tag and attributes, compiled."""

    def __init__(self, own: Sequence[str], further: Sequence[str], first: bool, siblings: bool) -> None:
        """`own`: predicates on tag and attributes alone; `further`: those on more, evaluated by lxml.

        `first`: only the first element is wanted; `siblings`: only the first of those with the same parent.
        """
        tags = re.findall(r"self::(\w+)", own[0]) if _TAGS.fullmatch(own[0]) else []
        self._holds = _Conjunction(own[1:] if tags else own)
        self._first, self._siblings = first, siblings
        self._cache: dict[tuple[str | None, ...], bool] = {}
        key = [f"get({name!r}), " for name in self._holds.attributes] + ["element.tag, "] * self._holds.by_tag
        parts: dict[str, Any] = {"cache": self._cache, "evaluate": self._evaluate}
        parts["further"] = XPath("self::*" + "".join(f"[{predicate}]" for predicate in further), namespaces=_NAMESPACES)
        source = _WALK.format(
            tags=", ".join(map(repr, tags or "*")), key="".join(key), further=" and further(element)" if further else ""
        )
        exec(source, parts)  # made of the library's expressions: nothing of a page is in it
        self._walk: Callable[[_Element], Iterator[_Element]] = parts["walk"]

    def __call__(self, tree: _Element) -> list[_Element]:
        """The elements, in the order of the document."""
        elements = list(islice(self._walk(tree), 1 if self._first else None))
        if self._siblings:
            firsts: dict[_Element | None, _Element] = {}
            for element in elements:
                firsts.setdefault(element.getparent(), element)
            return list(firsts.values())
        return elements

    def _evaluate(self, element: _Element, key: tuple[str | None, ...]) -> bool:
        """The result for an element that is not in the cache."""
        result, by_key = self._holds(element, key)
        if by_key and len("".join(filter(None, key))) < _LONG:
            if len(self._cache) == _CACHED:
                self._cache.clear()
            self._cache[key] = result
        return result


def _name(attribute: str) -> str:
    return attribute.replace("-", "_")


class _Conjunction:
    """A conjunction of predicates on tag and attributes, as a Python function.

    `attributes`: those that it depends on; `by_tag`: whether it depends on the tag too.
    """

    def __init__(self, predicates: Sequence[str]) -> None:
        text = " ".join(predicates)
        self.attributes = sorted(set(_ATTRIBUTE.findall(_STRING.sub("", text))))
        self.by_tag = "self::" in text
        self._unions: list[tuple[int, ...]] = []  # of attributes: the one that comes first in an element counts
        self._parts: dict[str, Any] = {}  # names in the source: translation tables and functions of compiled patterns
        expression = " and ".join(f"({_TOKEN.sub(self._python, predicate)})" for predicate in predicates) or "True"
        names, unions = [*map(_name, self.attributes)], [*map(str, range(len(self._unions)))]
        parameters = [*(f"of_{name}" for name in names), *["tag"] * self.by_tag, *(f"of_{number}" for number in unions)]
        source = _PREDICATE.format(
            parameters=", ".join(parameters),
            texts="; ".join(f'in_{name} = of_{name} or ""' for name in names + unions) or "pass",
            expression=expression,
        )
        exec(source, self._parts)
        self._holds: Callable[..., bool] = self._parts["holds"]

    def __call__(self, element: _Element, key: Sequence[str | None]) -> tuple[bool, bool]:
        """(the result for an element with this key, whether every element with this key has the same).

        Not every one has where predicates test a union of attributes, whose order in the element then decides.
        """
        if not self._unions:
            return self._holds(*key), True
        choices = [[key[at] for at in union if key[at] is not None] or [None] for union in self._unions]
        results = {self._holds(*key, *chosen) for chosen in product(*choices)}
        if len(results) == 1:
            return results.pop(), True
        places = [self.attributes.index(name) for name in element.attrib if name in self.attributes]
        firsts = [next((key[at] for at in places if at in union), None) for union in self._unions]
        return self._holds(*key, *firsts), False

    def _python(self, token: re.Match[str]) -> str:
        """The Python source of one part of a predicate."""
        if token["attribute"]:
            name = f"of_{_name(token['attribute'])}"
            return f"({name} is not None)" if token["equal"] is None else f"({name} == {token['value']!r})"
        if token["tag"]:
            return f"(tag == {token['tag']!r})"
        if not token["function"]:
            return token["rest"]
        names = _ATTRIBUTE.findall(token["names"] or token["translated"])
        value = f"in_{_name(names[0])}"
        if len(names) > 1:
            union = tuple(map(self.attributes.index, names))
            if union not in self._unions:
                self._unions.append(union)
            value = f"in_{self._unions.index(union)}"
        if token["translated"]:
            old, new = token["old"], token["new"]
            table = {ord(letter): new[at : at + 1] for at, letter in reversed(list(enumerate(old)))}
            value = f"{value}.translate({self._part(table)})"
        if token["function"] == "contains":
            return f"({token['part']!r} in {value})"
        if token["function"] == "starts-with":
            return f"{value}.startswith({token['part']!r})"
        some = "" if re.search(token["part"], "") else f"{value} and "  # most elements lack most attributes
        return f"({some}{self._matches(token['part'], bool(token['flags']), value)})"

    def _matches(self, pattern: str, any_case: bool, value: str) -> str:
        """The source of a search for a pattern; alternatives that are plain words become substring tests, for speed."""
        odd = _ODD.search(pattern)
        if any_case and not odd and pattern == pattern.lower():
            # Beyond ASCII some letters match others that are not their lower case.
            lower, folded = self._search(pattern, f"{value}.lower()"), self._search(pattern, value, re.IGNORECASE)
            return f"({lower} if {value}.isascii() else {folded})"
        alternatives = [part.removesuffix("|") for part in _outermost(pattern, "|")]
        words = [part for part in alternatives if _LITERAL.fullmatch(part)]
        if any_case or odd or not words or "" in alternatives:
            return self._search(pattern, value, re.IGNORECASE if any_case else 0)
        tests = [f"{word!r} in {value}" for word in words]
        # Apart by their first character: `re` tries a pattern whose alternatives all begin with a letter only at these.
        for kind in (r"\^", r"\w", r"[^\w^]"):
            if rest := "|".join(part for part in alternatives if part not in words and re.match(kind, part)):
                tests.append(self._search(rest, value))
        return f"({' or '.join(tests)})"

    def _search(self, pattern: str, value: str, flags: int = 0) -> str:
        """The source of a search by `re`."""
        return f"{self._part(re.compile(pattern, flags).search)}({value}) is not None"

    def _part(self, value: Any) -> str:
        """A name for a value in the source."""
        name = f"part_{len(self._parts)}"
        self._parts[name] = value
        return name


def _outermost(path: str, ends_with: str) -> list[str]:
    """The path, split after each of these characters that is outside of brackets (or closes the outermost ones)."""
    hidden = _STRING.sub(lambda string: "'" * len(string[0]), path)
    ends, depth = [0], 0
    for at, character in enumerate(hidden):
        depth += (character in "[(") - (character in "])")
        if character == ends_with and depth == 0:
            ends.append(at + 1)
    return [path[begin:end] for begin, end in pairwise([*ends, len(path)])]


def _predicates(path: str) -> list[str]:
    """The contents of the outermost brackets of `[…][…]`."""
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
        choices.append(" and ".join([*tag, *(f"({predicate})" for predicate in _predicates(step["predicates"]))]))
    return f".//*[{' or '.join(choices)}]"


def compiled(expression: XPath) -> XPath | Compiled:
    """The expression; compiled, if it begins with predicates on tag and attributes alone, or unites such paths."""
    form = _FORM.fullmatch(_united(expression.path))
    predicates = _predicates(form["predicates"]) if form else []
    siblings = predicates[1:] != [] and predicates[-1] == "1"
    predicates = predicates[:-1] if siblings else predicates
    own = list(takewhile(_OWN.fullmatch, predicates))
    if not (form and own) or any(map(_COUNTS.fullmatch, predicates)):  # to count, all elements must be evaluated
        return expression
    return Compiled(own, predicates[len(own) :], bool(form[1]), siblings)
