"""Personal data in text: presidio's recognizers on windows around cheap candidates.

A page without `@` and without a run of digits costs two scans. Placeholders are `<KIND>`, the same everywhere, so that
a document's text does not depend on other documents.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer, RecognizerResult

# presidio's entity name for each of the recipe's kinds, in order of precedence where spans overlap.
ENTITIES = {
    "EMAIL": "EMAIL_ADDRESS",
    "IBAN": "IBAN_CODE",
    "CREDIT_CARD": "CREDIT_CARD",
    "US_SSN": "US_SSN",
    "IP": "IP_ADDRESS",
    "STREET_ADDRESS": "STREET_ADDRESS",
    "PASSPORT": "PASSPORT",
    "PHONE": "PHONE_NUMBER",
    "PERSON": "PERSON",
}
REGIONS = ("US", "GB", "DE", "FR")  # whose national phone formats are recognized; numbers with +code always are
SHORTEST_PHONE = 4  # digits: no shorter number is valid in any of the regions, with a country code or without
WINDOW = 60  # characters on each side of a candidate: room for the longest IBAN and a context word
# Score at which a recognizer alone is believed; below it a context word must be near (presidio: base score + 0.35).
MIN_SCORE = 0.4
_CONTEXT = {
    "PASSPORT": ("passport",),
    "US_SSN": ("social security", "ssn", "ss#"),
    "PHONE": (
        "phone",
        "call",
        "tel",
        "mobile",
        "cell",
        "fax",
        "contact",
        "my number",
        "whatsapp",
        "sms",
        "answering at",
    ),
}
_PHONE_AFTER = re.compile(r"[\s,(-]{0,3}(?:office|fax|mobile|cell|phone|home|work)\b", re.I)
# A street address, as in the United States and Britain: number, capitalized name, kind of street.
_STREET = (
    r"Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Court|Ct|Boulevard|Blvd|Place|Pl|Way|Terrace|Ter|Circle|Cir|Highway"
    r"|Hwy|Parkway|Pkwy|Square|Sq|Trail|Crescent|Close|Mews|Gardens|Grove|Row|Walk|Hill"
)
_ADDRESS = (
    rf"(?<![\w.,/-])\d{{1,5}}[A-Z]? (?:(?:N|S|E|W|NE|NW|SE|SW)\.? )?(?:[A-Z][\w'’.-]* ){{1,4}}?(?:{_STREET})\b\.?"
    r"(?:,? (?:Apartment|Apt|Suite|Ste|Unit|Floor|Flat|#)\.? ?#?[\w-]{1,6})?"
    r"(?:,? (?:[A-Z][\w'’.-]* ?){1,3},? [A-Z]{2} \d{5}(?:-\d{4})?\b)?"
)
_CANDIDATE = re.compile(
    r"@|[Pp]assport|PASSPORT|\d[\d .()/+-]{5,}\d"
    r"|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}|\b[A-Za-z]{2}\d{2} ?[A-Za-z0-9]{4}"
    rf"|\b\d{{1,5}}[A-Z]? (?:[A-Z][\w'’.-]* ){{1,5}}?(?:{_STREET})\b"
)
# What presidio's recognizers miss: Mastercard's 2-series (ISO/IEC 7812, 222100-272099; Luhn is checked as for all
# cards); North American numbers by their form alone, since phonenumbers only accepts assigned area codes; and, beside a
# word for a phone, any groups of digits.
_SERIES_2 = ("Mastercard 2-series", r"\b2[2-7]\d{2}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}\b", 0.3)
_PHONES = (
    (
        "North American",
        r"(?<![\w.+-])(?:(?:\+|00)?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?: ?x\d{1,6})?(?!\w|[.-]\d)",
        0.5,
    ),
    ("+1", r"(?<![\w.-])\+1[ .-]?\d{3}[ .-]?\d{3}[ .-]?\d{4}(?: ?x\d{1,6})?\b", 0.5),
    ("groups of digits", r"(?<![\w.+/-])(?:\(\d{1,4}\) ?)?\d{2,5}(?:[ .-]\d{2,8}){1,5}(?![\w/]|[.-]\d)", 0.3),
)
# Passport numbers of the United States, Britain (ISO/IEC 7501: nine characters), Germany and most others: letters, then
# digits. An order number can look the same, so the word must precede it.
_PASSPORT = ("passport", r"\b(?:\d{9}|[A-Z]{1,2}\d{6,8}|[CFGHJKLMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ\d]{7}\d)\b", 0.1)
_NAMES = ("PERSON", "PER")  # labels of spaCy's pipelines for people
_CAPITALS = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_YEAR = re.compile(r"(?:1[89]|20)\d\d")
_VERSION = re.compile(r"(?:version|release|v|openssl|kernel|isbn|[a-z]+[-_])\s*:?\s*$", re.I)
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}")


@contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Within the block, importing one of these modules fails as if it were not installed."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules |= dict.fromkeys(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@cache
def _recognizers() -> dict[str, tuple[EntityRecognizer, ...]]:
    # presidio imports torch and transformers where they are installed: 3.5 CPU seconds per worker, for nothing that the
    # pattern recognizers use.
    with _without("torch", "transformers"):
        import phonenumbers
        import tldextract
        from presidio_analyzer import EntityRecognizer, Pattern, PatternRecognizer, RecognizerResult
        from presidio_analyzer.predefined_recognizers import (
            CreditCardRecognizer,
            EmailRecognizer,
            IbanRecognizer,
            IpRecognizer,
            PhoneRecognizer,
            UsSsnRecognizer,
        )
    # The e-mail recognizer checks domains by the public-suffix list, which tldextract would download: use its snapshot.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    tldextract.extract = tldextract.tldextract.TLD_EXTRACTOR
    phonenumbers.enable_pattern_cache()  # it has more patterns than re's own cache can hold

    class Matcher(phonenumbers.PhoneNumberMatcher):  # type: ignore[misc]
        """Skips groups of too few digits: the base class would parse those of a date or a time in every region."""

        def _parse_and_verify(self, candidate: str, offset: int) -> Any:
            long = sum(map(str.isdigit, candidate)) >= SHORTEST_PHONE
            return super()._parse_and_verify(candidate, offset) if long else None

    class Phones(PhoneRecognizer):  # type: ignore[misc]
        """presidio's, without its second parse of each number, which only finds a region that is not used here."""

        def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
            matchers = (Matcher(text, region, self.leniency) for region in REGIONS)
            matches = itertools.chain.from_iterable(matchers)
            results = [RecognizerResult(entities[0], match.start, match.end, self.SCORE) for match in matches]
            return list(EntityRecognizer.remove_duplicates(results))

    return {
        "EMAIL": (EmailRecognizer(),),
        "IBAN": (IbanRecognizer(),),
        "CREDIT_CARD": (CreditCardRecognizer(patterns=[*CreditCardRecognizer.PATTERNS, Pattern(*_SERIES_2)]),),
        "US_SSN": (UsSsnRecognizer(),),
        "IP": (IpRecognizer(),),
        "PHONE": (
            Phones(leniency=phonenumbers.Leniency.VALID),
            PatternRecognizer(supported_entity=ENTITIES["PHONE"], patterns=[Pattern(*phone) for phone in _PHONES]),
        ),
        "PASSPORT": (PatternRecognizer(supported_entity=ENTITIES["PASSPORT"], patterns=[Pattern(*_PASSPORT)]),),
        "STREET_ADDRESS": (
            PatternRecognizer(
                supported_entity=ENTITIES["STREET_ADDRESS"],
                patterns=[Pattern("street", _ADDRESS, 0.5)],
                global_regex_flags=re.MULTILINE,
            ),
        ),
    }


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


def find(text: str, kinds: Sequence[str], person_model: str | None = None) -> list[tuple[int, int, str]]:
    """Spans (start, end, kind) of personal data, in order, without overlap."""
    candidates = people(text, person_model) if person_model else []
    for start, end in _windows(text):
        piece = text[start:end]
        for kind in _recognizers():
            if kind not in kinds:
                continue
            # Also in capitals, for an IBAN in lower case; not only so: the next word may then look like a part of it.
            forms = (piece, piece.translate(_CAPITALS)) if kind == "IBAN" else (piece,)
            for form, recognizer in itertools.product(forms, _recognizers()[kind]):
                for result in recognizer.analyze(form, [ENTITIES[kind]], None) or []:
                    span = (start + result.start, start + result.end, kind)
                    if _accepted(text, span, result):
                        candidates.append(span)
    order = list(ENTITIES)
    spans: list[tuple[int, int, str]] = []
    for span in sorted(set(candidates), key=lambda s: (order.index(s[2]), s[0], -s[1])):  # by precedence, longest first
        if all(span[1] <= other[0] or span[0] >= other[1] for other in spans):
            spans.append(span)
    return sorted(spans)


def redact(text: str, kinds: Sequence[str], person_model: str | None = None) -> tuple[str, list[tuple[str, str]]]:
    """The text with placeholders, and (kind, `masked` string) of each, in order."""
    replaced: list[tuple[str, str]] = []
    pieces, at = [], 0
    for start, end, kind in find(text, kinds, person_model):
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


def _accepted(text: str, span: tuple[int, int, str], result: RecognizerResult) -> bool:
    """Whether a recognizer's result is personal data, by its score and by what surrounds it."""
    start, end, kind = span
    value, before = text[start:end], text[max(0, start - WINDOW) : start]
    if kind == "IP":
        return is_public(value) and not _VERSION.search(before) and not text[end : end + 2].strip(" ,;)").isdigit()
    if kind in ("PHONE", "US_SSN", "CREDIT_CARD") and (
        _DATE.fullmatch(value) or re.search(r"isbn[-\s:0-9]*$", before, re.I)
    ):
        return False
    if kind == "PHONE" and re.search(r"[A-Za-z][-_/#]$", before):
        return False  # INV-2023-004518
    if kind == "PHONE" and (result.score < MIN_SCORE or not re.search(r"[+()]|\d[ .-]\d", value)):
        # A bare run of digits is an order number more often than a phone number.
        digits = sum(map(str.isdigit, value))
        return 6 <= digits <= 15 and (_near(before, kind) or bool(_PHONE_AFTER.match(text, end)))
    if kind == "STREET_ADDRESS" and _YEAR.match(value) and not re.search(r"\d{5}", value[4:]):
        return False  # "In 1929 Wall Street"
    if kind == "US_SSN" and result.score < MIN_SCORE:
        return bool(re.fullmatch(r"\d{3}-\d{2}-\d{4}", value)) or _near(before, kind)
    return result.score >= MIN_SCORE or _near(before, kind)


def _near(before: str, kind: str) -> bool:
    """Whether a context word of the kind precedes."""
    return any(word in before.lower() for word in _CONTEXT.get(kind, ()))


def is_public(value: str) -> bool:
    """Whether a string is an IP address, of either version, that is reachable on the Internet."""
    try:
        address: Any = ipaddress.ip_address(value.partition("/")[0])
    except ValueError:
        return False
    return bool(address.is_global)
