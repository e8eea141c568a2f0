"""What an artifact holds: counts, documents by reason, a few of them at random.

    python -m jobs.commands.inspect extract --root .crawl2chat/data [--run demo] [--reason language_gate] [--samples 3]

The artifact is a stage's name, of the newest run or of `--run`, or a folder below the root.
"""

from __future__ import annotations

import argparse
import random
import textwrap
from collections.abc import Iterator
from typing import Any

from jobs.stage.table import read_rows
from pipeline import artifact, errors
from pipeline.artifact import Published
from pipeline.errors import InputError
from pipeline.storage import Storage

_CHARS = 400  # of a text that is shown


def summary(found: Published) -> Iterator[str]:
    """Where it lies, what it was made of, how much is in it."""
    content, spent = found.content, found.manifest.run
    yield found.storage.path(found.folder)
    size = sum(file.bytes for file in content.files)
    yield f"  {len(content.files)} files, {size:,} bytes; {spent.seconds:.1f} s, {spent.cpu_seconds:.1f} CPU seconds"
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
            for key, one in value.items():
                yield f"    {key:<32}{', '.join(map(str, one)) if isinstance(one, list) else one}"


def samples(found: Published, reason: str | None, most: int, seed: int) -> Iterator[str]:
    """Random rows, drawn evenly from all parts; of those with `reason`, where one is given (`kept`: those without)."""
    rng, drawn, seen = random.Random(seed), list[dict[str, Any]](), 0
    for file in found.files(".parquet"):
        for row in read_rows(found.storage, file):
            if reason is not None and (row.get("reason") or "kept") != reason:
                continue
            seen += 1  # reservoir sampling (Vitter 1985, algorithm R)
            if len(drawn) < most:
                drawn.append(row)
            elif (at := rng.randrange(seen)) < most:
                drawn[at] = row
    if reason is not None and not seen:
        raise InputError(f"{found.folder} holds no row with reason {reason!r}", "see the reasons in its counts")
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
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", help="name of a stage, or folder of an artifact below the root")
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--run", help="name of the run; by default the newest")
    parser.add_argument("--reason", help="only rows that left for it; 'kept': only those that stayed")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    storage = Storage(given.root)
    if "/" in given.artifact:
        found = artifact.read(storage, given.artifact.strip("/"))
    else:
        run = artifact.run_name(given.run) if given.run else artifact.newest_run(storage, given.artifact)
        found = artifact.of_run(storage, run, given.artifact)
    print("\n".join(summary(found)))
    print("\n".join(samples(found, given.reason, given.samples, given.seed)))


if __name__ == "__main__":
    errors.run(main)
