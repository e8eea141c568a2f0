"""What may be personal data: presidio's recognizers, without the network, and patterns for what they miss.

They find too much on purpose; `jobs.page.pii.decide` reads what stands around each span.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

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
# Countries whose national phone formats a page of the language may use without any other sign of a phone.
NATIONAL = {
    "en": ("US", "GB"),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR",),
    "es": ("ES", "MX"),
    "it": ("IT",),
    "pt": ("PT", "BR"),
    "nl": ("NL",),
    "pl": ("PL",),
}
REGIONS = ("US", "GB", "DE", "FR")  # whose national formats count beside a word for a phone, in any language
SHORTEST_PHONE = 4  # digits: no shorter number is valid in any of these countries, with a country code or without
PHONE_WORD = re.compile(
    r"\b(?:tele)?phones?\b|\b(?:call|dial|ring|cell|mobile|fax|whatsapp|sms|contact|hotline|switchboard|landline|tel)\b"
    r"|\b(?:cell|mobile|fax)[ _-]?(?:no|number|phone)\b|phone(?:[_-]?(?:no|num|number))?\b|\bmy number\b"
    r"|\banswering at\b|\btelefon|\btél(?:éphone)?\b|\btel[eé]fono|\bhandy(?:nummer)?\b",
    re.I,
)
# presidio takes `/`, `?`, `&` and `=` for letters of an address, so that it takes whole URLs; and no `%40`.
_EMAIL = (
    "address",
    r"(?<![\w.+%])[\w+](?:[\w.&~'’+-]{0,62}[\w+-])?(?:@|%40)\w+(?:-+\w+)*(?:\.\w+(?:-+\w+)*)+\b",
    0.5,
)
# A street address, as in the United States and Britain: number, capitalized name or ordinal, kind of street.
_STREETS = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Court|Ct|Boulevard|Blvd|Place|Pl|Way|Terrace|Ter|Circle|Cir|Highway"
    "|Hwy|Parkway|Pkwy|Square|Sq|Trail|Crescent|Close|Mews|Gardens|Grove|Row|Walk|Hill"
)
_STREET = f"(?:{_STREETS}|{_STREETS.upper()})"
_NAME = r"(?:[A-Z][\w'’.-]*|\d{1,3}(?:st|nd|rd|th|ST|ND|RD|TH))"
STREET_CANDIDATE = rf"\b\d{{1,5}}[A-Z]? (?:{_NAME} ){{1,5}}?{_STREET}\b"
_STATE = (
    "Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia|Hawaii|Idaho|Illinois"
    "|Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri"
    "|Montana|Nebraska|Nevada|New Hampshire|New Jersey|New Mexico|New York|North Carolina|North Dakota|Ohio|Oklahoma"
    "|Oregon|Pennsylvania|Rhode Island|South Carolina|South Dakota|Tennessee|Texas|Utah|Vermont|Virginia|Washington"
    "|West Virginia|Wisconsin|Wyoming|District of Columbia"
)
_ADDRESS = (
    rf"(?<![\w.,/-])\d{{1,5}}[A-Z]? (?:(?:N|S|E|W|NE|NW|SE|SW)\.? )?(?:{_NAME} ){{1,4}}?{_STREET}\b\.?"
    r"(?: (?:North|South|East|West|[NS][EW]|[NSEW])\b\.?)?"
    r"(?:,? (?:Apartment|Apt|Suite|Ste|Unit|Floor|Flat|#)\.? ?#?[\w-]{1,6})?"
    rf"(?:,? (?:[A-Z][\w'’.-]* ?){{1,3}},? (?:[A-Z]{{2}}|{_STATE}) \d{{5}}(?:-\d{{4}})?\b)?"
)
# Mastercard's 2-series (ISO/IEC 7812, 222100-272099), which presidio misses; and, beside a word for a card, any number
# of 12 to 19 digits (Maestro has 12, American Express 15, some of Visa's 19). Luhn's check digit holds for all cards.
_SERIES_2 = ("Mastercard 2-series", r"\b2[2-7]\d{2}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}\b", 0.3)
ANY_CARD = "digits of a card"
_ANY_CARD = (ANY_CARD, r"\b\d{4}(?:[ -]?\d){8,15}\b", 0.3)
# North American numbers by their form alone, since phonenumbers only accepts assigned area codes; a country code; and,
# beside a word for a phone, any groups of digits.
NORTH_AMERICAN, COUNTRY_CODE = "North American", "country code"
_PHONES = (
    (
        NORTH_AMERICAN,
        r"(?<![\w.+-])(?:(?:\+|00)?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?: ?x\d{1,6})?(?!\w|[.-]\d)",
        0.5,
    ),
    (
        COUNTRY_CODE,
        r"(?<![\w.+-])\+[1-9]\d{0,2}[ .-]?(?:\(0\)[ .-]?)?(?:\(\d{1,5}\)|\d+)(?:[ .-]\d+){0,6}(?: ?x\d{1,6})?"
        r"(?![\w/]|[.-]\d)",
        0.5,
    ),
    ("groups of digits", r"(?<![\w.+/-])(?:\(\d{1,4}\) ?)?\d{2,5}(?:[ .-]\d{2,8}){1,5}(?![\w/]|[.-]\d)", 0.3),
)
# Passport numbers of the United States, Britain (ISO/IEC 7501: nine characters), Germany and most others: letters, then
# digits. An order number can look the same, so the word must precede it.
_PASSPORT = ("passport", r"\b(?:\d{9}|[A-Z]{1,2}\d{6,8}|[CFGHJKLMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ\d]{7}\d)\b", 0.1)


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
        import tldextract
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer.predefined_recognizers import (
            CreditCardRecognizer,
            EmailRecognizer,
            IbanRecognizer,
            IpRecognizer,
            UsSsnRecognizer,
        )
    # The e-mail recognizer checks domains by the public-suffix list, which tldextract would download: use its snapshot.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    tldextract.extract = tldextract.tldextract.TLD_EXTRACTOR
    # A recognizer for each pattern: one of several patterns gives only the longest of spans that overlap.
    cards = [*CreditCardRecognizer.PATTERNS, Pattern(*_SERIES_2), Pattern(*_ANY_CARD)]
    phone = ENTITIES["PHONE"]
    return {
        "EMAIL": (EmailRecognizer(patterns=[Pattern(*_EMAIL)]),),
        "IBAN": (IbanRecognizer(),),
        "CREDIT_CARD": tuple(CreditCardRecognizer(patterns=[card]) for card in cards),
        "US_SSN": (UsSsnRecognizer(),),
        "IP": (IpRecognizer(),),
        "PHONE": tuple(PatternRecognizer(supported_entity=phone, patterns=[Pattern(*rule)]) for rule in _PHONES),
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
def _matcher() -> type[Any]:
    """phonenumbers' matcher, spared groups of too few digits: it would parse those of a date or a time."""
    import phonenumbers

    phonenumbers.enable_pattern_cache()  # it has more patterns than re's own cache can hold

    class Matcher(phonenumbers.PhoneNumberMatcher):  # type: ignore[misc]
        def _parse_and_verify(self, candidate: str, offset: int) -> Any:
            long = sum(map(str.isdigit, candidate)) >= SHORTEST_PHONE
            return super()._parse_and_verify(candidate, offset) if long else None

    return Matcher


def results(kind: str, text: str, language: str) -> Iterator[tuple[RecognizerResult, str]]:
    """Each span that may be of `kind`, with the rule that found it: a pattern's name, or the country of a phone number.

    A number that is valid only in another country than the page's is sought beside a word for a phone alone.
    """
    for recognizer in _recognizers()[kind]:
        for result in recognizer.analyze(text, [ENTITIES[kind]], None) or []:
            yield result, getattr(result.analysis_explanation, "pattern_name", None) or ""
    if kind == "PHONE":
        from phonenumbers import Leniency
        from presidio_analyzer import RecognizerResult

        own = NATIONAL.get(language, ())
        others = tuple(region for region in REGIONS if region not in own) if PHONE_WORD.search(text) else ()
        for region in own + others:
            for match in _matcher()(text, region, Leniency.VALID):
                yield RecognizerResult(ENTITIES[kind], match.start, match.end, 0.4), region
