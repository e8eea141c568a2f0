"""Personal data in text: presidio's recognizers on windows around cheap candidates, then a decision on each span.

A page without `@` and without a run of digits costs two scans. Placeholders are `<KIND>`, the same everywhere, so that
a document's text does not depend on other documents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from jobs.page.pii.decide import Span, accepted
from jobs.page.pii.recognizers import ENTITIES, STREET_CANDIDATE, results
from pipeline.errors import RecipeError

WINDOW = 60  # characters on each side of a candidate: room for the longest IBAN and a context word
_CANDIDATE = re.compile(
    r"@|%40|[Pp]assport|PASSPORT|\d[\d .()/+-]{5,}\d"
    r"|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}|\b[A-Za-z]{2}\d{2} ?[A-Za-z0-9]{4}"
    rf"|{STREET_CANDIDATE}"
)
_NAMES = ("PERSON", "PER")  # labels of spaCy's pipelines for people
_CAPITALS = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@cache
def _pipeline(folder: str) -> Any:
    import spacy

    try:
        return spacy.load(folder)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"redact.person_model: {folder} holds no spaCy pipeline: {error}", "name a folder that spacy.load reads"
        ) from error


def people(text: str, folder: str) -> list[tuple[int, int, str]]:
    """Spans of people's names that a spaCy pipeline finds. Raises `RecipeError` where `folder` holds none."""
    return [
        (name.start_char, name.end_char, "PERSON") for name in _pipeline(folder)(text).ents if name.label_ in _NAMES
    ]


def find(
    text: str, kinds: Sequence[str], person_model: str | None = None, language: str = "en"
) -> list[tuple[int, int, str]]:
    """Spans (start, end, kind) of personal data, in order, without overlap.

    `language` (ISO 639-1) of the page: the national formats of its countries are phone numbers by themselves.
    """
    candidates = people(text, person_model) if person_model else []
    for start, end in _windows(text):
        piece = text[start:end]
        for kind in ENTITIES:
            if kind not in kinds or kind == "PERSON":
                continue
            # Also in capitals, for an IBAN in lower case; not only so: the next word may then look like a part of it.
            for form in (piece, piece.translate(_CAPITALS)) if kind == "IBAN" else (piece,):
                for result, rule in results(kind, form, language):
                    span = Span(text, start + result.start, start + result.end, kind, result.score, rule)
                    if accepted(span):
                        candidates.append((span.start, span.end, kind))
    order = list(ENTITIES)
    spans: list[tuple[int, int, str]] = []
    for candidate in sorted(set(candidates), key=lambda s: (order.index(s[2]), s[0], -s[1])):  # precedence, longest
        if all(candidate[1] <= other[0] or candidate[0] >= other[1] for other in spans):
            spans.append(candidate)
    return sorted(spans)


def redact(
    text: str, kinds: Sequence[str], person_model: str | None = None, language: str = "en"
) -> tuple[str, list[tuple[str, str]]]:
    """The text with placeholders, and (kind, `masked` string) of each, in order."""
    replaced: list[tuple[str, str]] = []
    pieces, at = [], 0
    for start, end, kind in find(text, kinds, person_model, language):
        pieces += [text[at:start], f"<{kind}>"]
        replaced.append((kind, masked(text[start:end])))
        at = end
    return "".join([*pieces, text[at:]]), replaced


def masked(value: str) -> str:
    """The form of a string: letters as x, digits as 0. It shows mistakes (a version, a date), but nobody's data."""
    return "".join("x" if letter.isalpha() else "0" if letter.isnumeric() else letter for letter in value)


def _windows(text: str) -> list[tuple[int, int]]:
    """Ranges around the candidates, merged where they overlap; none begins or ends inside a word of usual length."""
    ranges: list[tuple[int, int]] = []
    for match in _CANDIDATE.finditer(text):
        start, end = max(0, match.start() - WINDOW), min(len(text), match.end() + WINDOW)
        while start > 0 and not text[start - 1].isspace() and match.start() - start < 3 * WINDOW:
            start -= 1
        while end < len(text) and not text[end].isspace() and end - match.end() < 3 * WINDOW:
            end += 1
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges
