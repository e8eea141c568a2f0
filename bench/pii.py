"""Recall and precision of redaction: `make bench-pii`.

    python -m bench.pii [--data ../shared/data] [--real code=.venv/lib technical=/usr/share/doc]
    python -m bench.pii --judged .crawl2chat/pii-spans.tsv

Labelled sets: presidio-research's generated texts and pii-anon's technical texts (see the data's README). A label
counts as found if a span covers it to within two characters; a span counts as wrong if it touches no label. In
pii-anon's log lines only some phone numbers are labelled, so that their precision is underestimated there.

Labelled texts hold no decimals, versions or section numbers. So redaction also runs on real texts, files of a folder
by name of the set, and every span is listed with what surrounds it. Somebody reads the list and writes 1 (right) or 0
into its first column; `--judged` then gives the precision.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import sysconfig
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import phonenumbers
from lxml import etree, html

from bench.folders import DATA
from jobs.page import pii
from jobs.page.pii import decide, recognizers

Labelled = tuple[str, list[tuple[int, int, str]]]  # text, labels (start, end, kind or the set's own name)
# A set's own name of a label -> our kind. Labels of other names are not measured.
KINDS = {
    "EMAIL_ADDRESS": "EMAIL",
    "IP_ADDRESS": "IP",
    "US_SSN": "US_SSN",
    "SOCIAL_SECURITY_NUMBER": "US_SSN",
    "CREDIT_CARD": "CREDIT_CARD",
    "IBAN_CODE": "IBAN",
    "PHONE_NUMBER": "PHONE",
    "STREET_ADDRESS": "STREET_ADDRESS",
}
# The form of a North American number, whether phonenumbers takes it for valid or not.
_US_SHAPED = re.compile(r"(?:(?:\+|00)?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?: ?x\d+)?")
_SLACK = 2  # characters
ALL_KINDS = [kind for kind in recognizers.ENTITIES if kind != "PERSON"]  # PERSON needs a model
MOST_CHARS, MOST_OF_A_SET = 400_000, 5_000_000  # characters that are read of a file, and of a set


def presidio(folder: Path) -> Iterator[Labelled]:
    """The generated texts of microsoft/presidio-research."""
    for row in json.loads(gzip.decompress((folder / "pii/presidio.generated_large.json.gz").read_bytes())):
        labels = [(span["start_position"], span["end_position"], span["entity_type"]) for span in row["spans"]]
        yield row["full_text"], labels


def technical(folder: Path) -> Iterator[Labelled]:
    """The texts on technology of pii-anon."""
    for line in gzip.decompress((folder / "pii/pii-anon.test_technology.jsonl.gz").read_bytes()).splitlines():
        row = json.loads(line)
        yield row["text"], [(label["start"], label["end"], label["entity_type"]) for label in row["annotations"]]


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
    """Labels, labels found, spans, wrong spans (each by kind), and CPU seconds per 1,000 texts."""
    labelled, found, spans, wrong = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    count, began = 0, time.process_time()
    for text, labels in texts:
        count += 1
        predicted = pii.find(text, ALL_KINDS)
        for start, end, kind in predicted:
            spans[kind] += 1
            wrong[kind] += not any(start < b and end > a for a, b, _ in labels)
        for start, end, name in labels:  # recall: does any span cover the label?
            if name in KINDS:
                hit = any(a <= start + _SLACK and b >= end - _SLACK for a, b, _ in predicted)
                for row in classes(KINDS[name], text[start:end]):
                    labelled[row] += 1
                    found[row] += hit
    return labelled, found, spans, wrong, 1000 * (time.process_time() - began) / max(1, count)


def read(path: Path) -> str:
    """A file's text, of HTML without its tags; empty where it has none. No more than `MOST_CHARS`."""
    if path.suffix not in (".txt", ".rst", ".md", ".html", ".bib", ".pgn", ".py", ".gz", ""):
        return ""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if path.suffix == ".html":
            return str(html.fromstring(data).text_content())[:MOST_CHARS]
        return data[:MOST_CHARS].decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, etree.ParserError):
        return ""  # a socket, a damaged file, a binary, an empty page


def scan(name: str, folder: Path, rows: Any) -> None:
    """Print how many spans there are in the files of a folder, in random order, and list each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(files)
    characters, spans = 0, Counter[str]()
    for path in files:
        text = read(path)
        characters += len(text)
        for start, end, kind in pii.find(text, ALL_KINDS):
            spans[kind] += 1
            around = text[max(0, start - 60) : start], text[start:end], text[end : end + 40]
            rows.writerow(["", name, kind, *(re.sub(r"\s+", " ", part) for part in around), path])
        if characters >= MOST_OF_A_SET:
            break
    rate = 100_000 * sum(spans.values()) / max(1, characters)
    print(f"| {name} | {characters:,} | {', '.join(f'{kind} {n}' for kind, n in spans.most_common())} | {rate:.2f} |")


def judged(path: Path) -> None:
    """Print the share of the spans that were judged right, by set and kind."""
    right, count = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for verdict, name, kind, *_ in csv.reader(path.open(), delimiter="\t"):
        if verdict in ("0", "1"):
            for key in ((name, kind), (name, "all")):
                count[key] += 1
                right[key] += verdict == "1"
    print("| set | kind | judged | right |\n|---|---|---:|---:|")
    for name, kind in sorted(count):
        print(f"| {name} | {kind} | {count[name, kind]} | {right[name, kind] / count[name, kind]:.3f} |")


def labelled(folder: Path) -> None:
    """Print recall and precision on the labelled sets."""
    for name, texts in (("presidio-research", presidio(folder)), ("pii-anon", technical(folder))):
        labelled, found, spans, wrong, seconds = measure(texts)
        print(f"\n{name}: {seconds:.2f} CPU seconds per 1,000 texts\n\n| kind | labels | recall | spans | precision |")
        print("|---|---:|---:|---:|---:|")
        for kind in sorted(labelled | spans):
            recall = f"{found[kind] / labelled[kind]:.3f}" if labelled[kind] else "–"
            precision = f"{1 - wrong[kind] / spans[kind]:.3f}" if spans[kind] else "–"
            print(f"| {kind} | {labelled[kind]} | {recall} | {spans[kind] or '–'} | {precision} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--real", nargs="*", default=[], metavar="SET=FOLDER", help="real texts, unlabelled")
    parser.add_argument("--spans", type=Path, default=Path(".crawl2chat/pii-spans.tsv"), help="list of their spans")
    parser.add_argument("--judged", type=Path, help="a list of spans that was read and judged")
    arguments = parser.parse_args()
    if arguments.judged:
        judged(arguments.judged)
        return
    labelled(arguments.data)
    arguments.spans.parent.mkdir(parents=True, exist_ok=True)
    print("\n| real texts | characters | spans | per 100,000 characters |\n|---|---:|---|---:|")
    with arguments.spans.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        for given in arguments.real or [f"code={sysconfig.get_path('purelib')}", "technical=/usr/share/doc"]:
            name, _, folder = given.partition("=")
            scan(name, Path(folder), rows)
    print(f"\nEvery span: {arguments.spans}")


if __name__ == "__main__":
    main()
