"""The license that a page declares for itself: `rel=license`, JSON-LD, or the one Creative Commons license it links to.

A declaration is a claim of the page's maker. Pictures on a page often have licenses of their own, so a mere link counts
only where all links name the same one (dolma#108 asks for this column).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple
from urllib.parse import urljoin

from selectolax.lexbor import LexborHTMLParser

Sign = Literal["rel", "json_ld", "link"]
MAX_CHARS = 200  # of a license's URL that is kept
# Cheap: most pages hold none of these words, and are not parsed once more.
_HINT = re.compile(
    r"""rel\s*=\s*["']?[^"'>]*\blicense|["']license["']|creativecommons\.org/(?:licenses|publicdomain)/""", re.I
)
_CREATIVE_COMMONS = re.compile(
    r"creativecommons\.org/(?:licenses/(?P<kind>by(?:-nc)?(?:-nd|-sa)?|nc(?:-sa)?|nd(?:-nc)?|sa)|publicdomain/(?P<domain>zero|mark))"
    r"/(?P<version>\d\.\d)",
    re.I,
)
_DOMAINS = {"zero": "cc0", "mark": "pdm"}


class License(NamedTuple):
    """`name`: of Creative Commons as SPDX writes it, in small letters (`cc-by-sa-4.0`, `cc0-1.0`); others by URL."""

    name: str
    sign: Sign


def of_page(html: str, url: str) -> License | None:
    """The license that a page declares, None where it declares none."""
    if not _HINT.search(html):
        return None
    tree = LexborHTMLParser(html)
    for node in tree.css('a[rel~="license" i][href], link[rel~="license" i][href]'):
        if found := _name(node.attributes.get("href"), url):
            return License(found, "rel")
    for script in tree.css('script[type="application/ld+json" i]'):
        try:
            declared = json.loads(script.text())
        except (ValueError, RecursionError):
            continue
        for value in _licenses(declared):
            if found := _name(value, url):
                return License(found, "json_ld")
    hrefs = (node.attributes.get("href") for node in tree.css('a[href*="creativecommons.org/" i]'))
    linked = {name for href in hrefs if (name := _name(href, url)) and name.startswith(("cc", "pdm"))}
    return License(linked.pop(), "link") if len(linked) == 1 else None


def _name(value: Any, url: str) -> str | None:
    """The name of a license from its URL, None where the value is no URL."""
    if not isinstance(value, str) or not (value := value.strip()):
        return None
    if match := _CREATIVE_COMMONS.search(value):
        kind = _DOMAINS[match["domain"].lower()] if match["domain"] else f"cc-{match['kind'].lower()}"
        return f"{kind}-{match['version']}"
    try:
        absolute = urljoin(url, value)
    except ValueError:
        return None
    return absolute[:MAX_CHARS] if absolute.startswith(("http://", "https://")) else None


def _licenses(declared: Any, depth: int = 0) -> Iterator[Any]:
    """Values of `license` of JSON-LD's top things: the page, and what lies in `@graph` or a list."""
    if isinstance(declared, list):
        for thing in declared:
            yield from _licenses(thing, depth)
    elif isinstance(declared, dict) and depth < 3:
        value = declared.get("license")
        for one in value if isinstance(value, list) else [value]:
            yield one.get("@id") or one.get("url") if isinstance(one, dict) else one
        yield from _licenses(declared.get("@graph", []), depth + 1)
        yield from _licenses(declared.get("mainEntity", []), depth + 1)
