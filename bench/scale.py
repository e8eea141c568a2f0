"""CPU seconds per page of every stage, from 2,400 pages to 40,000, and the JVM's share: `make bench-scale`.

    python -m bench.scale [--warcs 'crawl/*.warc.gz'] [--copies 1 4 17] [--apart] [--root .crawl2chat/bench-scale]

The crawl is repeated under other URLs with other words: in each copy of a page a different third of its words of five
letters and more is reversed inside, so that two copies of a page are not near-duplicates. All copies of a file are one
file, as a crawl's files hold 30,000 pages; with --apart each copy is a file, so that more pages are more parts and not
larger ones. The cost of an empty Spark session, measured too, is subtracted from each stage. 40,000 pages take half an
hour on two cores.

Prints Markdown: the cost of each size, then the cost of the pages by which a size exceeds the one before it.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import xxhash
from warcio.archiveiterator import ArchiveIterator
from warcio.recordloader import ArcWarcRecord
from warcio.warcwriter import WARCWriter

from bench.folders import CRAWL, HOME
from bench.processes import SESSION, Spent, measured
from pipeline import artifact
from pipeline.recipe import load
from pipeline.stages import CORPUS
from pipeline.storage import Storage

STAGES = tuple(step.name for step in CORPUS)
# What of HTML is no text, and words of ASCII letters alone: not parts of an entity, nor of a word in another script.
_NO_TEXT = re.compile(rb"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>")
_WORD = re.compile(rb"(?<![A-Za-z&;\x80-\xff])[A-Za-z]{5,}(?![A-Za-z;\x80-\xff])")


def salted(html: bytes, copy: int) -> bytes:
    """The page with a third of its longer words reversed inside; as long as before."""

    @lru_cache(None)  # a page repeats its words
    def reversed_inside(word: bytes) -> bytes:
        if xxhash.xxh3_64_intdigest(word.lower(), seed=copy) % 3:
            return word
        return word[:1] + word[-2:0:-1] + word[-1:]

    def text(part: bytes) -> bytes:
        return _WORD.sub(lambda match: reversed_inside(match[0]), part)

    pieces, at = [], 0
    for tag in _NO_TEXT.finditer(html):
        pieces += [text(html[at : tag.start()]), tag[0]]
        at = tag.end()
    return b"".join([*pieces, text(html[at:])])


def records(source: Path, copy: int, writer: WARCWriter) -> Iterator[ArcWarcRecord]:
    """The records of a WARC under other URLs, with salted pages."""
    with source.open("rb") as stream:
        for record in ArchiveIterator(stream):
            uri, body = record.rec_headers.get_header("WARC-Target-URI"), record.raw_stream.read()
            if uri:
                parts = urlsplit(uri)
                uri = parts._replace(netloc=f"copy{copy}.{parts.netloc}").geturl()
            if record.rec_type == "response":
                body = salted(body, copy)
            # The writer sets the URI, and computes the digests of the new body.
            headers = {name: value for name, value in record.rec_headers.headers if name.startswith("WARC-")}
            for name in ("WARC-Target-URI", "WARC-Block-Digest", "WARC-Payload-Digest"):
                headers.pop(name, None)
            yield writer.create_warc_record(
                uri, record.rec_type, io.BytesIO(body), http_headers=record.http_headers, warc_headers_dict=headers
            )


def write(source: Path, copies: Sequence[int], target: Path) -> int:
    """Write a WARC that holds these copies of another, number 0 unchanged. Returns its number of responses."""
    with target.open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        for copy in copies:
            if copy == 0:  # gzip members may be concatenated
                stream.write(source.read_bytes())
                continue
            for record in records(source, copy, writer):
                writer.write_record(record)
    with target.open("rb") as stream:
        return sum(record.rec_type == "response" for record in ArchiveIterator(stream))


def stages(root: Path, warcs: str) -> dict[str, Spent]:
    """Run every stage of the corpus, as a user would start it, below a fresh root."""
    root.mkdir(parents=True)
    recipe = root / "recipe.yaml"
    recipe.write_text(load(HOME / "recipes/demo.yaml", {"input.warcs": [warcs]}).to_yaml())
    place = ["--recipe", str(recipe), "--root", str(root), "--run", "bench"]
    return {
        step.name: measured([sys.executable, step.script, *place], root / f"{step.name}.txt", {"PYTHONPATH": str(HOME)})
        for step in CORPUS
    }


def kept(root: Path) -> str:
    """Pages kept by each stage that drops many, as text."""
    contents = [
        artifact.of_run(Storage(root), "bench", stage).content for stage in ("extract", "filter", "deduplicate")
    ]
    return ", ".join(f"{content.stage} {content.counts.kept:,}" for content in contents if content.counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warcs", default=str(CRAWL / "*.warc.gz"), help="a glob; default: the shared crawl or sample")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4, 17], help="copies of every page, one per size")
    parser.add_argument("--apart", action="store_true", help="each copy of a file in a file of its own")
    parser.add_argument("--root", type=Path, default=HOME / ".crawl2chat/bench-scale")
    options = parser.parse_args()
    root, sources = options.root.resolve(), [Path(path) for path in sorted(glob.glob(options.warcs))]
    shutil.rmtree(root, ignore_errors=True)
    # 1. Write the crawls of all sizes.
    tasks: list[tuple[Path, Sequence[int], Path]] = []
    for copies in options.copies:
        folder = root / f"crawl-{copies}"
        folder.mkdir(parents=True)
        files = [[copy] for copy in range(copies)] if options.apart else [range(copies)]
        tasks += [(source, some, folder / f"{some[0]:02d}-{source.name}") for source in sources for some in files]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        written = dict(zip((target for *_, target in tasks), pool.map(write, *zip(*tasks, strict=True)), strict=True))
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores; CPU seconds per 1,000 responses, without an empty session\n"
    )
    # 2. Run the stages on each, and print its row. An empty session before each size follows the machine's drift.
    sizes: list[tuple[int, dict[str, Spent]]] = []
    shown = ("JVM's share of extract", "each stage's largest process but the JVM, MiB", "kept")
    print(f"| responses | {' | '.join((*STAGES, *shown))} |")
    print(f"|---:|{'---:|' * (len(STAGES) + 2)}---|", flush=True)
    for copies in options.copies:
        responses = sum(count for target, count in written.items() if target.parent.name == f"crawl-{copies}")
        empty = measured(SESSION, root / "session.txt", {"PYTHONPATH": str(HOME)})
        spent = stages(root / f"made-{copies}", str(root / f"crawl-{copies}/*.warc.gz"))
        each = [f"{1000 * (spent[stage].cpu - empty.cpu) / responses:.2f}" for stage in STAGES]
        extract, workers = spent["extract"], ", ".join(f"{spent[stage].worker:.0f}" for stage in STAGES)
        jvm = (extract.jvm - empty.jvm) / (extract.cpu - empty.cpu)
        cells = [f"{responses:,}", *each, f"{100 * jvm:.1f} %", workers, kept(root / f"made-{copies}")]
        print(f"| {' | '.join(cells)} |", flush=True)
        sizes.append((responses, spent))
    # 3. The cost of the further pages of each size: a stage's fixed cost cancels out.
    print(f"\n| per 1,000 further responses, between | {' | '.join(STAGES)} |\n|---|{'---:|' * len(STAGES)}")
    for (fewer, before), (more, after) in pairwise(sizes):
        each = [f"{1000 * (after[stage].cpu - before[stage].cpu) / (more - fewer):.2f}" for stage in STAGES]
        print(f"| {fewer:,} and {more:,} | {' | '.join(each)} |")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
