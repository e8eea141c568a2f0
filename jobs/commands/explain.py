"""One page through every step again, from its place in the archive: every score, and why it stayed or left.

    python -m jobs.explain https://… --root .crawl2chat/data [--run demo]

Extraction and scores are made anew and held against what was recorded; copies, redactions and tokens are read from the
artifacts of the run. Without `--run`, the newest one.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any

from jobs import extract, sources
from jobs.page import classifier, guard, quality, urls, warc
from jobs.table import read_rows
from pipeline import artifact, errors
from pipeline.artifact import Published
from pipeline.errors import InputError
from pipeline.recipe import Extract, Filter
from pipeline.storage import Storage


def found_rows(published: Published, column: str, value: str) -> list[dict[str, Any]]:
    """All rows of an artifact that hold `value`, with the name of their `file`."""
    found = []
    for file in published.files(".parquet"):
        rows = read_rows(published.storage, file, where=[(column, "=", value)])
        found += [row | {"file": file.rsplit("/", 1)[-1]} for row in rows]
    return found


def capture_of(row: dict[str, Any], extracted: Published, recipe: Extract) -> warc.Capture:
    """The capture that a row of extract came from, read again at its offset."""
    for source in extracted.content.inputs:
        if source.location.rsplit("/", 1)[-1] == row["warc"]:
            size = recipe.max_html_bytes + 2 * warc.HEADER_BYTES
            with sources.open_at(source.location, row["offset"], size) as stream:
                return next(warc.captures(stream, recipe.max_html_bytes))
    raise InputError(f"{row['warc']} is no input of {extracted.folder}", "this is a defect: report it")


def replayed(row: dict[str, Any], extracted: Published) -> dict[str, Any]:
    """The row that extract makes of the same capture now."""
    recipe = Extract.model_validate(extracted.content.recipe)
    lists = recipe.block_list
    name = extract.block_list(extracted.storage, recipe, urls.identity(lists.source, lists.categories))
    blocked = extract.opened(extracted.storage, name, urls.terms(lists))
    model = classifier.load(recipe.quality_model) if recipe.quality_model else None
    with guard.Guard(functools.partial(extract.read_page, recipe, model), recipe.page_seconds) as read:
        return extract.page(capture_of(row, extracted, recipe), blocked, recipe, read)


def shown(value: Any) -> str:
    """A score, as short as it can be told from its limit."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def explained(storage: Storage, run: str, row: dict[str, Any]) -> Iterator[str]:
    """The lines about one row of extract."""
    extracted = artifact.of_run(storage, run, "extract")
    if row["offset"] < 0 or row["reason"] == "damaged":  # the row of an archive, or of a part of it
        yield f"{row['url']}\n  -> {row['reason']}: {row['detail']}"
        return
    now = replayed(row, extracted)
    yield f"{row['url']}\n  {row['warc']} at {row['offset']}, captured {row['date']}, document {row['id']}"
    yield "extract"
    columns = ("status", "mime", "html_bytes", "charset", "languages", "title")
    for name in (*columns, "detected", "language", "language_score", "quality"):
        if now.get(name) is not None:
            yield f"  {name:<34}{shown(now[name])}"
    differs = [name for name in ("reason", "text") if now.get(name) != row[name]]
    if differs:
        yield f"  not as recorded: {', '.join(differs)} (other library versions or another block list)"
    if now.get("reason"):
        yield f"  -> left: {now['reason']}" + (f" ({now['detail']})" if now.get("detail") else "")
        return
    yield f"  -> {len(now['text']):,} characters of text"
    try:
        filtered = artifact.of_run(storage, run, "filter")
    except errors.ArtifactError:
        return
    yield "filter"
    broken = []
    for check in quality.checks(now, Filter.model_validate(filtered.content.recipe)):
        mark = f"   <- {check.reason}" if check.broken else ""
        yield f"  {check.score:<34}{shown(check.value):<12}{check.relation} {shown(check.limit)}{mark}"
        broken += [check.reason] * check.broken
    if broken:
        yield f"  -> left: {broken[0]}"
        return
    yield "  -> stays"
    yield from followed(storage, run, row, extracted)


def followed(storage: Storage, run: str, row: dict[str, Any], extracted: Published) -> Iterator[str]:
    """The lines about what the later stages recorded of a document that filter kept."""
    told_by = {"deduplicate": copies, "redact": redactions, "decontaminate": removal, "shard": tokens}
    for stage, told in told_by.items():
        try:
            made = artifact.of_run(storage, run, stage)
        except errors.ArtifactError:
            return
        yield stage
        found = found_rows(made, "id", row["id"])
        for line in told(found[0] if found else None, extracted):
            yield f"  {line}"
        if not found or found[0].get("reason"):
            return


def copies(found: dict[str, Any] | None, extracted: Published) -> Iterator[str]:
    """What deduplicate decided."""
    if found is None:
        yield "not there: it was made of other decisions of filter"
    elif found["reason"]:
        original = found_rows(extracted, "id", found["cluster"])
        yield f"-> left: {found['reason']} of {original[0]['url'] if original else found['cluster']}"
    else:
        yield "-> stays"


def redactions(found: dict[str, Any] | None, _extracted: Published) -> Iterator[str]:
    """What redact replaced."""
    yield f"replaced: {found['redactions']}" if found else "not there"


def removal(found: dict[str, Any] | None, _extracted: Published) -> Iterator[str]:
    """What decontaminate decided."""
    if found and found["reason"]:
        yield f"-> left: {found['reason']} ({found['detail']})"
    else:
        yield "-> stays" if found else "not there"


def tokens(found: dict[str, Any] | None, _extracted: Published) -> Iterator[str]:
    """Where the document's tokens lie."""
    if found:
        shard = found["file"].removesuffix(".documents.parquet")
        yield f"-> {found['tokens']:,} tokens of {shard}, from {found['start']:,} on (document {found['document']:,})"
    else:
        yield "not there"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--root", required=True, help="folder or s3:// URI below which artifacts lie")
    parser.add_argument("--run", help="name of the run; by default the newest")
    given = parser.parse_args()
    storage = Storage(given.root)
    run = artifact.run_name(given.run) if given.run else artifact.newest_run(storage, "extract")
    rows = found_rows(artifact.of_run(storage, run, "extract"), "url", given.url)
    if not rows:
        raise InputError(f"run {run!r} has no capture of {given.url}", "check the URL: it is compared letter by letter")
    for row in rows:
        print("\n".join(explained(storage, run, row)))


if __name__ == "__main__":
    errors.run(main)
