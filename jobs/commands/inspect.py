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

from jobs.page import quality
from jobs.stage.table import read_rows
from pipeline import artifact, command, errors
from pipeline.artifact import Published
from pipeline.errors import InputError
from pipeline.recipe import Filter
from pipeline.stages import STEPS
from pipeline.storage import Storage
from pipeline.terminal import one_line, plain, show

_CHARS = 400  # printed of a text
_PAGE = ("url", "title", "text")  # what is shown of the page on which a row decides


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
    rng, drawn, seen = random.Random(seed), list[tuple[str, dict[str, Any]]](), 0
    for file in published.files(".parquet"):
        for row in read_rows(published.storage, file):
            if reason is not None and (row.get("reason") or "kept") != reason:
                continue
            seen += 1  # reservoir sampling (Vitter 1985, algorithm R)
            if len(drawn) < count:
                drawn.append((file, row))
            elif (at := rng.randrange(seen)) < count:
                drawn[at] = (file, row)
    if reason is not None and not seen:
        raise InputError(f"{published.folder} holds no row with reason {reason!r}", "see the reasons in its counts")
    for file, row in drawn:
        yield ""
        yield from shown(row if "url" in row else row | decided_on(published, file, row))


def decided_on(published: Published, file: str, row: dict[str, Any]) -> dict[str, Any]:
    """Of a row that holds a decision alone: URL, title and text of its page, and each rule of filter that it broke.

    Empty where the artifact that holds the page was removed.
    """
    storage, recipe = published.storage, published.content.recipe
    for source in published.content.inputs:
        if source.stage in ("extract", "redact") and artifact.is_published(storage, source.location):
            # A part of decisions bears the name of the part of text on which it decides.
            part = artifact.read(storage, source.location).file(file.rsplit("/", 1)[1])
            for page in read_rows(storage, part, where=[("id", "=", row["id"])]):
                known = {name: page[name] for name in _PAGE}
                if published.content.stage == "filter":
                    broken = [check for check in quality.checks(page, Filter.model_validate(recipe)) if check.broken]
                    known |= {
                        check.reason: f"{check.score} {_shown(check.value)}, {check.relation} {_shown(check.limit)}"
                        for check in broken
                    }
                return known
    return {}


def shown(row: dict[str, Any]) -> Iterator[str]:
    """A line for each value of a row; a long text, of which the beginning is shown, takes several."""
    for name, value in row.items():
        if value is None or isinstance(value, bytes):
            continue
        text = _shown(value)
        if len(text) > 80:
            begin = plain(text[:_CHARS]) + ("…" if len(text) > _CHARS else "")
            yield f"  {name}\n{textwrap.indent(begin, '    | ', lambda _line: True)}"
        else:
            yield f"  {name:<34}{one_line(text)}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def named(storage: Storage, name: str, run: str | None) -> Published:
    """The artifact of a folder below the root, or of a stage, in a run or the newest one.

    Raises `InputError` for a stage that there is not.
    """
    if "/" in name:
        return artifact.read(storage, name.strip("/"))
    if name not in STEPS and not artifact.runs_with(storage, name):
        raise InputError(f"there is no stage {name!r}", f"name one of {', '.join(STEPS)}")
    return artifact.of_run(storage, artifact.run_name(run) if run else artifact.newest_run(storage, name), name)


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
    published = named(storage, options.artifact, options.run)
    show(summary(published))
    show(samples(published, options.reason, options.samples, options.seed))


if __name__ == "__main__":
    errors.run(main)
