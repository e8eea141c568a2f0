"""Recall and precision of redaction on labelled texts: `make bench-pii`.

    python -m bench.pii [--data ../shared/data]

Sets: presidio-research's generated texts and pii-anon's technical texts (see the data's README). A label counts as
found if a span covers it to within two characters; a span counts as wrong if it touches no label. In pii-anon's log
lines only some phone numbers are labelled, so that their precision is underestimated there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import phonenumbers

from jobs.page import pii
from jobs.page.pii import decide, recognizers

Labelled = tuple[str, list[tuple[int, int, str]]]  # text, labels (start, end, kind or the set's own name)
NAMES = {
    "EMAIL_ADDRESS": "EMAIL",
    "IP_ADDRESS": "IP",
    "US_SSN": "US_SSN",
    "SOCIAL_SECURITY_NUMBER": "US_SSN",
    "CREDIT_CARD": "CREDIT_CARD",
    "IBAN_CODE": "IBAN",
    "PHONE_NUMBER": "PHONE",
    "STREET_ADDRESS": "STREET_ADDRESS",
}
_US_SHAPED = re.compile(r"(?:(?:\+|00)?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?: ?x\d+)?")
_SLACK = 2  # characters


def presidio(folder: Path) -> Iterator[Labelled]:
    """microsoft/presidio-research, generated."""
    for row in json.loads(gzip.decompress((folder / "pii/presidio.generated_large.json.gz").read_bytes())):
        spans = [(s["start_position"], s["end_position"], s["entity_type"]) for s in row["spans"]]
        yield row["full_text"], spans


def technical(folder: Path) -> Iterator[Labelled]:
    """pii-anon, technology."""
    for line in gzip.decompress((folder / "pii/pii-anon.test_technology.jsonl.gz").read_bytes()).splitlines():
        row = json.loads(line)
        yield row["text"], [(a["start"], a["end"], a["entity_type"]) for a in row["annotations"]]


def classes(kind: str, value: str) -> Iterator[str]:
    """The rows of the table in which a label counts."""
    yield kind
    if kind == "IP" and not decide.is_public(value):
        yield "IP, not public (stays)"
    if kind == "PHONE":
        for region in recognizers.REGIONS:
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(value, region)):
                    yield "PHONE, valid"
                    break
            except phonenumbers.NumberParseException:
                continue
        if _US_SHAPED.fullmatch(value):
            yield "PHONE, US-shaped"


def measure(texts: Iterator[Labelled]) -> tuple[Counter[str], Counter[str], Counter[str], Counter[str], float]:
    """Labels, labels found, spans, wrong spans (by kind), and CPU seconds per 1,000 texts."""
    seen, found, spans, wrong = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    count, began = 0, time.process_time()
    for text, labels in texts:
        count += 1
        predicted = pii.find(text, list(recognizers.ENTITIES))
        for start, end, kind in predicted:
            spans[kind] += 1
            wrong[kind] += not any(start < b and end > a for a, b, _ in labels)
        for start, end, name in labels:
            if name in NAMES:
                hit = any(a <= start + _SLACK and b >= end - _SLACK for a, b, _ in predicted)
                for row in classes(NAMES[name], text[start:end]):
                    seen[row] += 1
                    found[row] += hit
    return seen, found, spans, wrong, 1000 * (time.process_time() - began) / max(1, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data")
    folder = parser.parse_args().data
    for name, texts in (("presidio-research", presidio(folder)), ("pii-anon", technical(folder))):
        seen, found, spans, wrong, seconds = measure(texts)
        print(f"\n{name}: {seconds:.2f} CPU seconds per 1,000 texts\n\n| kind | labels | recall | spans | precision |")
        print("|---|---:|---:|---:|---:|")
        for kind in sorted(seen | spans):
            recall = f"{found[kind] / seen[kind]:.3f}" if seen[kind] else "–"
            precision = f"{1 - wrong[kind] / spans[kind]:.3f}" if spans[kind] else "–"
            print(f"| {kind} | {seen[kind]} | {recall} | {spans[kind] or '–'} | {precision} |")


if __name__ == "__main__":
    main()
