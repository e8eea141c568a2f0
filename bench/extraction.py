"""Quality of the extracted main text against references, by mode: `make bench-extraction`.

    python -m bench.extraction [--data ../shared/data]

For each page with a reference text: F1 of the words (as a bag: order does not count), the mean over pages; pages that
are lost whole (no word of the reference); CPU seconds of all pages. Every mode reads the same decoded pages.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections import Counter
from pathlib import Path

from bench.folders import DATA
from jobs.archive import warc
from jobs.page import charset, extraction, faster

MODES: list[tuple[extraction.Mode, int]] = [
    ("precision", 0),
    ("precision", 250),
    ("precision", 500),
    ("precision", 1000),
    ("default", 0),
    ("fast", 0),
    ("resiliparse", 0),
]


def pages(folder: Path, language: str | None) -> list[tuple[str, str, str]]:
    """HTML, URL and reference text of every page that has one."""
    references: dict[tuple[str, int], str] = {}
    for line in gzip.decompress((folder / "truth.jsonl.gz").read_bytes()).splitlines():
        row = json.loads(line)
        if row.get("text") and not row.get("planted") and language in (None, row["lid"]):
            references[row["part"], row["offset"]] = row["text"]
    found = []
    for path in sorted(folder.glob("*.warc.gz")):
        with path.open("rb") as stream:
            for capture in warc.captures(stream, 1 << 23, Counter()):
                if reference := references.get((path.name, capture.offset)):
                    found.append(
                        (charset.decode(capture.payload or b"", capture.content_type)[0], capture.url, reference)
                    )
    return found


def f1(text: str, reference: str) -> float:
    """F1 of two texts' words, as bags."""
    ours, theirs = (Counter(re.findall(r"\w+", one.lower())) for one in (text, reference))
    common = (ours & theirs).total()
    return 2 * common / max(1, ours.total() + theirs.total())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--language", help="only pages in this language")
    options = parser.parse_args()
    faster.install()
    read = pages(options.data / "crawl", options.language)
    print(f"{len(read)} pages\n\n| mode | `default` below | F1 | lost whole | CPU seconds |\n|---|---:|---:|---:|---:|")
    for mode, below in MODES:
        began = time.process_time()
        texts = [extraction.extract(html, url, mode, below).text or "" for html, url, _ in read]
        seconds = time.process_time() - began
        scores = [f1(text, reference) for text, (_, _, reference) in zip(texts, read, strict=True)]
        lost = sum(score < 0.05 for score in scores)
        print(f"| {mode} | {below or '–'} | {sum(scores) / len(scores):.3f} | {lost} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
