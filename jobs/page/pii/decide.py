"""Whether what a recognizer found is somebody's: by its form, its score, and what stands around it.

A number that has the right number of digits is, on real pages, a decimal, a version, a section, a date, a range of
years or pages, an ISBN or a row of a table far more often than a phone number or an address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.page.pii.recognizers import ANY_CARD, COUNTRY_CODE, NORTH_AMERICAN, PHONE_WORD

NEAR = 60  # characters before a span in which a context word counts
# Score at which a recognizer alone is believed; below it a context word must be near (presidio: base score + 0.35).
MIN_SCORE = 0.4


@dataclass(frozen=True)
class Span:
    """What a rule of a recognizer takes for personal data of a kind, in its text."""

    text: str
    start: int
    end: int
    kind: str
    score: float
    rule: str

    @property
    def value(self) -> str:
        return self.text[self.start : self.end]

    @cached_property
    def before(self) -> str:
        """What precedes."""
        return self.text[max(0, self.start - NEAR) : self.start]

    @cached_property
    def after(self) -> str:
        """What follows."""
        return self.text[self.end : self.end + NEAR]

    @cached_property
    def digits(self) -> str:
        return "".join(re.findall(r"\d", self.value))


# What names a number that is nobody's, directly before it: a version, a part of a text, a comparison of versions.
_VERSION = re.compile(
    r"(?:\b(?:versions?|releases?|rel|ver|rev|v|section|sect|sec|clause|chapter|paragraph|para|article|appendix|annex"
    r"|table|figure|fig|rule|openssl|kernel|isbn|issn|doi|oid)\b\.?|§|[=~<>!]=|[A-Za-z][-_/])\s*[:#\"'“(\[]{0,2}\s*\Z",
    re.I,
)
# Identifiers of mails, not addresses: 19970804.UAA16213@…, 1992Jan17.005405.16806@…, 54562774.8030306@…, 7937@….
_MESSAGE_ID = re.compile(r"\d{1,5}(?:@|%40)|\d{8,}[.-]\w|\d{4}[A-Z][a-z]{2}\d+\.|[\dA-F]{8}\.\d")
_IP_WORD = re.compile(
    r"\b(?:ipv?[46]?|ips|address(?:es)?|hosts?|server|nameservers?|dns|resolver|ping|traceroute|gateway|router|client"
    r"|remote|src|dst|proxy|connect(?:ed|ing|ion)?|listen(?:s|ing)?|log(?:ged )?in|access|password|session|ssh|firewall"
    r"|blocked|banned)\b|@['\"]?\Z",
    re.I,
)
_RESOLVERS = ("8.8.8.8", "8.8.4.4", "9.9.9.9")  # small numbers, but addresses that everybody writes
_SMALL = 30  # parts of a dotted quad up to which it looks like the number of a section or version
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # the only IPv6 addresses that are assigned (RFC 4291, IANA)
_CARD_WORD = re.compile(r"\b(?:cards?|visa|maestro|mastercard|amex|american express|diners|discover|jcb)\b", re.I)
_SSN_WORD = re.compile(r"\bsocial security\b|\bssn\b|\bss#", re.I)
_PASSPORT_WORD = re.compile(r"passport", re.I)
_PHONE_AFTER = re.compile(r"[\s,(-]{0,3}(?:office|fax|mobile|cell|phone|home|work)\b", re.I)
_DATE = re.compile(r"(?<!\d)(?:\d{4}([-./])\d{1,2}\1\d{1,2}|\d{1,2}([-./])\d{1,2}\2\d{4})(?!\d)")
_DECIMAL = re.compile(r"(?:^|[ (-])0[.]\d|(?:^[+]?| )\d+[.]\d+(?: |$)")
_YEARS = re.compile(r"(?:1[4-9]|20)\d\d(?:\s?[-–/ ]\s?(?:(?:1[4-9]|20)\d\d|\d\d))+")
_YEAR = re.compile(r"(?:1[89]|20)\d\d\b")
_BEFORE_YEAR = re.compile(r"\b(?:in|since|during|by|until|till|from|the|around|circa|early|late|mid)\s\Z", re.I)
_RELEASE = re.compile(r"\d\.\d{1,2}\.\d|.*\.\.")  # 3.10.0-862; 229.20..229.20 is a range
_ZIP_4 = re.compile(r"\d{5}-\d{4}")
_ISBN = re.compile(r"(?:97[89][- ]?)?\d{1,5}[- ]\d{1,7}[- ]\d{1,6}[- ][\dX]")
_MONTH = re.compile(r"\b(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*\.? ?\Z", re.I)
_PAGES = re.compile(r"\b(?:pp?|pages?|vol|no|nos|nr|lines?)\b\.?\s*\Z", re.I)
# Kinds of street that are verbs and common nouns too, and words that no street is named by: "5 New Ideas Drive Growth".
_COMMON = re.compile(r"\b(?:Drive|Court|Place|Way|Square|Close|Walk|Row|Hill|Circle|Trail|Grove)\b\.?$", re.I)
_NO_STREET = re.compile(
    r"\b(?:A|An|The|This|That|Your|You|My|Our|Their|His|Her|Its|And|Or|To|For|With|Is|Are|Best|Top|Most|More|Ways|Reasons"
    r"|Things|Tips|Ideas|Steps|Days?|Weeks?|Months?|Years?|Hours?|Minutes?|Seconds?|Times(?! Square)|People|Percent"
    r"|Million|Billion|District|Supreme|High Court|Superior|Circuit|Crown Court|County Court|Appeals?|January|February"
    r"|March|April|June|July|August|September|October|November|December|AM|PM)\b",
    re.I,
)


def accepted(span: Span) -> bool:
    """Whether a span is personal data."""
    return _RULES[span.kind](span)


def is_public(value: str) -> bool:
    """Whether a string is an IP address, of either version, that is reachable on the Internet."""
    try:
        address: Any = ipaddress.ip_address(value.partition("/")[0])
    except ValueError:
        return False
    return bool(address.is_global) and (address.version == 4 or address in _GLOBAL_UNICAST)


def _ip(span: Span) -> bool:
    if not is_public(span.value) or _VERSION.search(span.before):
        return False
    if re.search(r"[\w.]\Z", span.before) or re.match(r"\w|[.]\d|-[A-Za-z]", span.after):
        return False  # a part of a longer name or number
    if span.after[:2].strip(" ,;)").isdigit():
        return False
    if ":" in span.value or span.value in _RESOLVERS:
        return True
    if sum(int(part) <= _SMALL for part in span.value.partition("/")[0].split(".")) < 3:
        return True
    if re.search(r"(?:^|\n)[^\S\n]*[#*]*[^\S\n]*\Z", span.before) and re.match(r"[.]?[^\S\n]+[A-Za-z]", span.after):
        return False  # the heading of a section
    return bool(_IP_WORD.search(span.before[-40:]) or _IP_WORD.search(span.after[:20]))


def _inside_number(span: Span) -> bool:
    """Whether a run of digits is a part of a longer token: a decimal, a DOI, an identifier, a path."""
    return bool(re.search(r"(?:\w|\d[.,:/-]|[A-Za-z][-_/#])\Z", span.before) or re.match(r"\w|[.,/_-]\d", span.after))


def _credit_card(span: Span) -> bool:
    if _inside_number(span) or _is_book(span) or span.score < MIN_SCORE:  # Luhn's check digit raises the score
        return False
    # No common card begins with 1: a time stamp in nanoseconds does, and holds the check digit once in ten.
    if span.rule != ANY_CARD and span.digits[0] != "1":
        return True
    return bool(_CARD_WORD.search(span.before) or _CARD_WORD.search(span.after[:20]))


def _us_ssn(span: Span) -> bool:
    if _inside_number(span) or _is_book(span) or _DATE.search(span.value):
        return False
    if span.score >= MIN_SCORE or re.fullmatch(r"\d{3}-\d{2}-\d{4}", span.value):
        return True
    return bool(_SSN_WORD.search(span.before))


def _street_address(span: Span) -> bool:
    number, _, rest = span.value.partition(" ")
    if _YEAR.match(number) and _BEFORE_YEAR.search(span.before) and not re.search(r"\d{5}", rest):
        return False  # "In 1929 Wall Street"
    street = rest.partition(",")[0]
    if _NO_STREET.search(street):
        return False
    headline = re.match(r" [A-Z][a-z]", span.after) and not span.value.endswith(".")
    return not (_COMMON.search(street) and (street.count(" ") > 2 or headline))


def _passport(span: Span) -> bool:
    return bool(_PASSPORT_WORD.search(span.before))


def _is_book(span: Span) -> bool:
    """Whether a number is an ISBN by its groups and check digit, or named as one."""
    if re.search(r"\b(?:isbn|issn)\b[^\n]{0,24}\Z", span.before, re.I):
        return True
    if not _ISBN.fullmatch(span.value):
        return False
    digits = [10 if sign == "X" else int(sign) for sign in re.findall(r"[\dX]", span.value)]
    if len(digits) == 13:
        return sum(digit * (1 + 2 * (at % 2)) for at, digit in enumerate(digits)) % 10 == 0
    return len(digits) == 10 and sum(digit * (10 - at) for at, digit in enumerate(digits)) % 11 == 0


def _phone(span: Span) -> bool:
    value = span.value
    if not 6 <= len(span.digits) <= 19 or _inside_number(span) or _is_book(span) or _VERSION.search(span.before):
        return False
    if _DATE.search(value) or _YEARS.fullmatch(value) or _DECIMAL.search(value) or _ZIP_4.fullmatch(value):
        return False
    if _RELEASE.match(value):
        return False
    if _PAGES.search(span.before) or _MONTH.search(span.before):
        return False
    if span.rule == COUNTRY_CODE:
        return _is_possible(value)
    if PHONE_WORD.search(span.before) or _PHONE_AFTER.match(span.after):
        return len(span.digits) <= 15 or span.rule == NORTH_AMERICAN  # with an extension
    if value.startswith("+"):
        return True
    if span.score < MIN_SCORE or not re.search(r"[()]|\d[ .-]\d", value):
        # A bare run of digits is an order number more often than a phone number.
        return False
    # Digits and spaces alone are columns of a table, or amounts, unless a 0 begins them as it does national numbers.
    return not re.fullmatch(r"[1-9][\d ]+", value)


def _is_possible(value: str) -> bool:
    """Whether a number behind `+` has a country's code and as many digits as its numbers have."""
    import phonenumbers

    try:
        return bool(phonenumbers.is_possible_number(phonenumbers.parse(value)))
    except phonenumbers.NumberParseException:
        return False


def _email(span: Span) -> bool:
    return span.score >= MIN_SCORE and not _MESSAGE_ID.match(span.value)


def _by_score(span: Span) -> bool:
    return span.score >= MIN_SCORE


_RULES: dict[str, Callable[[Span], bool]] = {
    "EMAIL": _email,
    "IBAN": _by_score,
    "CREDIT_CARD": _credit_card,
    "US_SSN": _us_ssn,
    "IP": _ip,
    "STREET_ADDRESS": _street_address,
    "PASSPORT": _passport,
    "PHONE": _phone,
}
