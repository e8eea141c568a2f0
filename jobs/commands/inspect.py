"""What an artifact holds: counts, reasons of dropped documents, and a random sample of rows.

    python -m jobs.commands.inspect extract --root .crawl2chat/data [--run demo] [--reason language_gate] [--samples 3]

The artifact is named by its stage, in the newest run or in `--run`, or by its folder below the root.
"""

from __future__ import annotations

import argparse
import random
import textwrap
from collections.abc import Iterator
from typing import Any

from jobs.stage.table import read_rows
from pipeline import artifact, command, errors
from pipeline.artifact import Published
from pipeline.errors import InputError
from pipeline.storage import Storage

_CHARS = 400  # printed of a text


def summary(published: Published) -> Iterator[str]:
    """Lines with its location, size, cost, inputs, counts and numbers."""
    content, cost = published.content, published.manifest.run
    yield published.storage.path(published.folder)
    size = sum(file.bytes for file in content.files)
    yield f"  {len(content.files)} files, {size:,} bytes; {cost.seconds:.1f} s, {cost.cpu_seconds:.1f} CPU seconds"
    for source in content.inputs[:8]:
        yield f"  from {source.location}"
    if len(content.inputs) > 8:
        yield f"  … {len(content.inputs) - 8} more"
    if content.counts:
        came = max(1, content.counts.in_)
        for name, count in (("in", content.counts.in_), ("kept", content.counts.kept)):
            yield f"  {name:<34}{count:>10,} {count / came:>8.2%}"
        for name, count in sorted(content.counts.dropped.items(), key=lambda item: -item[1]):
            yield f"    {name:<32}{count:>10,} {count / came:>8.2%}"
    for name, value in content.numbers.items():
        if isinstance(value, (int, float, str)):
            yield f"  {name:<34}{value}"
        elif isinstance(value, dict):
            yield f"  {name}"
            for key, inner in value.items():
                yield f"    {key:<32}{', '.join(map(str, inner)) if isinstance(inner, list) else inner}"


def samples(published: Published, reason: str | None, count: int, seed: int) -> Iterator[str]:
    """Lines with `count` rows, drawn uniformly: from all rows, or from those with `reason` (`kept`: without one)."""
    rng, drawn, seen = random.Random(seed), list[dict[str, Any]](), 0
    for file in published.files(".parquet"):
        for row in read_rows(published.storage, file):
            if reason is not None and (row.get("reason") or "kept") != reason:
                continue
            seen += 1  # reservoir sampling (Vitter 1985, algorithm R)
            if len(drawn) < count:
                drawn.append(row)
            elif (at := rng.randrange(seen)) < count:
                drawn[at] = row
    if reason is not None and not seen:
        raise InputError(f"{published.folder} holds no row with reason {reason!r}", "see the reasons in its counts")
    for row in drawn:
        yield ""
        for name, value in row.items():
            if value is None or isinstance(value, bytes):
                continue
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            if len(text) > 80:
                shown = text[:_CHARS] + ("…" if len(text) > _CHARS else "")
                yield f"  {name}\n{textwrap.indent(shown, '    | ')}"
            else:
                yield f"  {name:<34}{text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", help="name of a stage, or folder of an artifact below the root")
    command.add_root(parser)
    parser.add_argument("--run", help="name of the run; by default the newest")
    parser.add_argument("--reason", help="only rows that were dropped for it; 'kept': only those that were kept")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    storage = Storage(options.root)
    if "/" in options.artifact:
        published = artifact.read(storage, options.artifact.strip("/"))
    else:
        run = artifact.run_name(options.run) if options.run else artifact.newest_run(storage, options.artifact)
        published = artifact.of_run(storage, run, options.artifact)
    print("\n".join(summary(published)))
    print("\n".join(samples(published, options.reason, options.samples, options.seed)))


if __name__ == "__main__":
    errors.run(main)
