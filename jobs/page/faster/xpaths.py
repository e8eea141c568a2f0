"""A compiler of trafilatura's XPath predicates to Python functions whose results are cached by tag and attributes.

A good part of trafilatura's time goes into evaluating, for each element of a page and of every copy of it, dozens of
substring tests on its class. The result follows from tag and attributes, which repeat: it is computed once, by the
predicate as Python source, and looked up for the next element with the same tag and attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise, product, takewhile
from typing import Any

import trafilatura.xpaths
from lxml.etree import XPath, _Element

# Elements below one, chosen by predicates; the first of them all, where the whole stands in brackets.
_FORM = re.compile(r"\s*(\()?\s*\.//\*(?P<predicates>\[.*\])\s*(?(1)\)\[1\])\s*", re.DOTALL)
_NAMESPACES = {"re": trafilatura.xpaths.REGEXP_NS}
_STRING, _ATTRIBUTE = re.compile(r"'[^']*'"), re.compile(r"@([\w-]+)")
_STEP = re.compile(r"\s*\.//(?P<tag>\*|\w+)(?P<predicates>(?:\[.*\])?)\s*", re.DOTALL)  # one path of a union
_LITERAL = re.compile(r"[\w -]+")  # a pattern that means itself
_ODD = re.compile(r"\\|\(\?[^:=!]")  # what may change the meaning of a bar, or of small letters: escapes and flags
_NAMES = r"@[\w-]+(?:\s*\|\s*@[\w-]+)*"
# What a predicate on an element's tag and attributes alone is made of; one that is but a choice of tags; one that
# counts.
_TOKEN = re.compile(
    r"(?P<function>contains|starts-with|re:test)\(\s*"
    rf"(?:(?P<names>{_NAMES})|translate\(\s*(?P<translated>{_NAMES})\s*,\s*'(?P<old>[^']*)'\s*,\s*'(?P<new>[^']*)'\s*\))"
    r"\s*,\s*'(?P<part>[^']*)'\s*(?:,\s*'(?P<flags>i?)'\s*)?\)"
    r"|@(?P<attribute>[\w-]+)(?=\s*(?:\)|and\b|or\b|=\s*'|$))(?P<equal>\s*=\s*'(?P<value>[^']*)')?"
    r"|self::(?P<tag>\w+)|(?P<rest>not(?=\()|and\b|or\b|[\s()])"
)
_OWN = re.compile(f"(?:{_TOKEN.pattern})+")
_TAGS = re.compile(r"\s*self::\w+(?:\s+or\s+self::\w+)*\s*")
_COUNTS = re.compile(r".*\b(?:position|last|count|sum|number|string-length)\(.*|[\s\d]+", re.DOTALL)
_REMEMBERED, _LONG = 4096, 512  # verdicts of an expression, and characters of one's attributes: some 20 MB for all
# A call, or a loop within this one, costs as much as the rest: so it is written out for each expression.
_WALK = """
def walk(tree):
    for element in tree.iterdescendants({tags}):
        get = element.get
        key = ({key})
        holds = known.get(key)
        if holds is None:
            holds = ask(element, key)
        if holds{further}:
            yield element
"""
# As XPath has it, an attribute that is not there is an empty text to a function.
_HOLDS = """
def holds({given}):
    {texts}
    return bool({holds})
"""


class Remembered:
    """An XPath on the elements below one, where tag and attributes decide."""

    def __init__(self, own: Sequence[str], further: Sequence[str], first: bool, siblings: bool) -> None:
        """Predicates on tag and attributes alone, those on more, and whether the first element is enough: of them all,
        or of those with the same parent.
        """
        tags = re.findall(r"self::(\w+)", own[0]) if _TAGS.fullmatch(own[0]) else []
        self._verdict = _Verdict(own[1:] if tags else own)
        self._first, self._siblings = first, siblings
        self._known: dict[tuple[str | None, ...], bool] = {}
        key = [f"get({name!r}), " for name in self._verdict.attributes] + ["element.tag, "] * self._verdict.by_tag
        parts: dict[str, Any] = {"known": self._known, "ask": self._ask}
        parts["further"] = XPath("self::*" + "".join(f"[{one}]" for one in further), namespaces=_NAMESPACES)
        source = _WALK.format(
            tags=", ".join(map(repr, tags or "*")), key="".join(key), further=" and further(element)" if further else ""
        )
        exec(source, parts)
        self._walk: Callable[[_Element], Iterator[_Element]] = parts["walk"]

    def __call__(self, tree: _Element) -> list[_Element]:
        """The elements, in the order of the document."""
        found = list(islice(self._walk(tree), 1 if self._first else None))
        if self._siblings:
            firsts: dict[_Element | None, _Element] = {}
            for element in found:
                firsts.setdefault(element.getparent(), element)
            return list(firsts.values())
        return found

    def _ask(self, element: _Element, key: tuple[str | None, ...]) -> bool:
        holds, remember = self._verdict(element, key)
        if remember and len("".join(filter(None, key))) < _LONG:
            if len(self._known) == _REMEMBERED:
                self._known.clear()
            self._known[key] = holds
        return holds


def _name(attribute: str) -> str:
    return attribute.replace("-", "_")


class _Verdict:
    """Whether all of some predicates hold for an element, put into Python.

    `attributes` are those it hangs on, `by_tag` says whether it hangs on the tag too.
    """

    def __init__(self, predicates: Sequence[str]) -> None:
        text = " ".join(predicates)
        self.attributes = sorted(set(_ATTRIBUTE.findall(_STRING.sub("", text))))
        self.by_tag = "self::" in text
        self._unions: list[tuple[int, ...]] = []  # of attributes, of which that which comes first in an element counts
        self._parts: dict[str, Any] = {}
        holds = " and ".join(f"({_TOKEN.sub(self._python, one)})" for one in predicates) or "True"
        names, unions = [*map(_name, self.attributes)], [*map(str, range(len(self._unions)))]
        given = [*(f"of_{name}" for name in names), *["tag"] * self.by_tag, *(f"of_{number}" for number in unions)]
        source = _HOLDS.format(
            given=", ".join(given),
            texts="; ".join(f'in_{name} = of_{name} or ""' for name in names + unions) or "pass",
            holds=holds,
        )
        exec(source, self._parts)
        self._holds: Callable[..., bool] = self._parts["holds"]

    def __call__(self, element: _Element, key: Sequence[str | None]) -> tuple[bool, bool]:
        """For an element with these attributes, and tag: the verdict, and whether another with the same has it too."""
        if not self._unions:
            return self._holds(*key), True
        choices = [[key[at] for at in union if key[at] is not None] or [None] for union in self._unions]
        verdicts = {self._holds(*key, *chosen) for chosen in product(*choices)}
        if len(verdicts) == 1:
            return verdicts.pop(), True
        places = [self.attributes.index(name) for name in element.attrib if name in self.attributes]
        firsts = [next((key[at] for at in places if at in union), None) for union in self._unions]
        return self._holds(*key, *firsts), False

    def _python(self, token: re.Match[str]) -> str:
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
        return f"({some}{self._found(token['part'], bool(token['flags']), value)})"

    def _found(self, pattern: str, any_case: bool, value: str) -> str:
        """Whether a pattern is found in a value; words among its alternatives are sought as such, which is faster."""
        odd = _ODD.search(pattern)
        if any_case and not odd and pattern == pattern.lower():
            # Beyond ASCII some letters match others that are not their small ones.
            small, any_letters = self._sought(pattern, f"{value}.lower()"), self._sought(pattern, value, re.IGNORECASE)
            return f"({small} if {value}.isascii() else {any_letters})"
        alternatives = [part.removesuffix("|") for part in _outermost(pattern, "|")]
        words = [one for one in alternatives if _LITERAL.fullmatch(one)]
        if any_case or odd or not words or "" in alternatives:
            return self._sought(pattern, value, re.IGNORECASE if any_case else 0)
        tests = [f"{word!r} in {value}" for word in words]
        # A pattern whose alternatives all begin with a letter is tried only where one of these letters stands.
        for kind in (r"\^", r"\w", r"[^\w^]"):
            if rest := "|".join(one for one in alternatives if one not in words and re.match(kind, one)):
                tests.append(self._sought(rest, value))
        return f"({' or '.join(tests)})"

    def _sought(self, pattern: str, value: str, flags: int = 0) -> str:
        return f"{self._part(re.compile(pattern, flags).search)}({value}) is not None"

    def _part(self, value: Any) -> str:
        name = f"part_{len(self._parts)}"
        self._parts[name] = value
        return name


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
