"""The corpus stages beside datatrove's FineWeb pipeline, on the same WARC files in one run: `make bench-corpus`.

    python -m bench.corpus [--warcs 'crawl/*.warc.gz'] [--copies 4] [--repeats 3] [--only speed | agreement]

Prints Markdown: CPU seconds of all processes of each side, and how far the two keep the same pages. datatrove is
installed into an environment of its own at first use (0.5 GB; its reader needs the system's libmagic). Both sides use
recipes/fineweb.yaml's thresholds and the same block list, and both run as many processes as there are cores. Copies
are made by `bench.scale`: to every filter they are other pages. 2,400 pages take 20 minutes on two cores, eight copies
an hour.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import os
import sys
from pathlib import Path

from bench.comparison import agreement, speed
from bench.comparison.sides import RECIPE, VARIANTS, Bench
from bench.folders import CRAWL, HOME
from pipeline.recipe import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warcs", default=str(CRAWL / "*.warc.gz"), help="a glob; default: the shared crawl or sample")
    parser.add_argument("--copies", type=int, default=1, help="salted copies of every page")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", choices=["speed", "agreement"])
    parser.add_argument("--extractors", nargs="+", default=["precision", "fast"])
    parser.add_argument("--root", type=Path, default=HOME / ".crawl2chat/bench-corpus")
    options = parser.parse_args()
    warcs = [Path(path).resolve() for path in sorted(glob.glob(options.warcs))]
    if not warcs:
        sys.exit(f"no WARC file matches {options.warcs}")
    # 1. The variants of our side, and the one threshold that datatrove takes on its command line.
    variants = [variant for variant in VARIANTS if variant.extractor in options.extractors]
    limit = load(RECIPE).filter.fineweb.max_duplicate_line_chars
    bench = Bench(options.root.resolve(), warcs, options.copies)
    files = f"{len(warcs)} WARC files" + (f" in {options.copies} copies" if options.copies > 1 else "")
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {files}, {options.repeats} run(s)\n")
    # 2. CPU seconds. Agreement reads the documents that these runs leave; without them, it needs these stages only.
    if options.only == "agreement":
        bench.datatrove("filter", bench.root / "with", bench.theirs, limit)
        for variant in variants:
            bench.ours(variant, ("extract", "filter"))
    else:
        print(speed.stages(bench, variants, limit, options.repeats), flush=True)
        print(speed.steps(bench, options.extractors), flush=True)
    # 3. Agreement. A run without a language gate gives the texts of all pages, on which the filters are compared.
    if options.only != "speed":
        bench.ours(variants[0], ("extract", "filter"), gate=0.0)
        rows = bench.documents(variants[0], gate=0.0)
        gated = [variant for variant in variants if variant.extractor == variants[0].extractor]
        print(agreement.end_to_end(bench, variants))
        print(agreement.identical_text(bench, rows, limit))
        print(agreement.gate(bench, gated, rows))


if __name__ == "__main__":
    main()
