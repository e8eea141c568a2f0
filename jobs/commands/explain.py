"""One page through every step again, from its place in the archive: every score, and why it stayed or left.

    python -m jobs.commands.explain https://… --root .crawl2chat/data [--run demo]

Extraction and scores are made anew and held against what was recorded; copies, redactions and tokens are read from the
artifacts of the run, as far as it came. Without `--run`, the newest one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from jobs import deduplicate, extract
from jobs.archive import sources, warc
from jobs.archive.reader import HEADER_BYTES
from jobs.archive.response import Capture
from jobs.copies import minhash
from jobs.page import classifier, quality, urls
from jobs.stage.table import read_rows
from pipeline import artifact, errors
from pipeline.artifact import Published
from pipeline.errors import InputError
from pipeline.recipe import Deduplicate, Extract, Filter
from pipeline.storage import Storage


def found_rows(published: Published, column: str, value: str, suffix: str = ".parquet") -> list[dict[str, Any]]:
    """All rows of an artifact's files with this ending that hold `value`, with the name of their `file`."""
    found = []
    for file in published.files(suffix):
        rows = read_rows(published.storage, file, where=[(column, "=", value)])
        found += [row | {"file": file.rsplit("/", 1)[-1]} for row in rows]
    return found


def capture_of(row: dict[str, Any], extracted: Published, recipe: Extract) -> Capture:
    """The capture that a row of extract came from, read again at its offset."""
    for source in extracted.content.inputs:
        if source.location.rsplit("/", 1)[-1] == row["warc"]:
            size = recipe.max_html_bytes + 2 * HEADER_BYTES
            with sources.open_at(source.location, row["offset"], size) as stream:
                return next(warc.captures(stream, recipe.max_html_bytes))
    raise InputError(f"{row['warc']} is no input of {extracted.folder}", "this is a defect: report it")


def replayed(row: dict[str, Any], extracted: Published) -> dict[str, Any]:
    """The row that extract makes of the same capture now."""
    recipe = Extract.model_validate(extracted.content.recipe)
    lists = recipe.block_list
    name = extract.block_list(extracted.storage, recipe, urls.identity(lists.source, lists.categories))
    blocked = extract.open_block_list(extracted.storage, name, urls.terms(lists))
    model = classifier.load(recipe.quality_model) if recipe.quality_model else None
    with extract.reader(recipe, model) as read:
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
    else:
        yield f"  -> {len(now['text']):,} characters of text"
    if row["reason"] is None:  # as recorded: that is what the later stages read
        yield from judged(storage, run, row, row if now.get("reason") else now)


def judged(storage: Storage, run: str, row: dict[str, Any], scores: dict[str, Any]) -> Iterator[str]:
    """The lines about a document with text: its scores beside the limits of filter, and what came after."""
    filtered = made(storage, run, "filter")
    if filtered is None:
        return
    yield "filter"
    reasons = []
    for check in quality.checks(scores, Filter.model_validate(filtered.content.recipe)):
        mark = f"   <- {check.reason}" if check.broken else ""
        yield f"  {check.score:<34}{shown(check.value):<12}{check.relation} {shown(check.limit)}{mark}"
        reasons += [check.reason] * check.broken
    recorded = found_rows(filtered, "id", row["id"])
    if not recorded:
        yield "  not there: it was made of another extract"
        return
    reason = recorded[0]["reason"]
    if reason != (reasons[0] if reasons else None):
        yield "  not as recorded: reason (other library versions)"
    yield f"  -> left: {reason}" if reason else "  -> stays"
    if reason is None:
        yield from followed(storage, run, row)


def followed(storage: Storage, run: str, row: dict[str, Any]) -> Iterator[str]:
    """The lines about what the later stages recorded of a document that filter kept, those that the run has."""
    told_by = {"deduplicate": copies, "redact": redactions, "decontaminate": removal, "shard": tokens}
    for stage, told in told_by.items():
        published = made(storage, run, stage)
        if published is None:
            continue
        yield stage
        found = found_rows(published, "id", row["id"])
        for line in told(found, published, row):
            yield f"  {line}"
        if not found or found[0].get("reason"):
            return


def made(storage: Storage, run: str, stage: str) -> Published | None:
    """What a stage published in this run, if it did."""
    found = artifact.pointer(storage, run, stage)
    return artifact.of_run(storage, run, stage) if found and found.state != "running" else None


def copies(found: list[dict[str, Any]], published: Published, row: dict[str, Any]) -> Iterator[str]:
    """What deduplicate decided."""
    if not found:
        yield "not there: it was made of other decisions of filter"
    elif reason := found[0]["reason"]:
        document = found[0]["cluster"]
        url, signature = staying(document, published)
        recipe = Deduplicate.model_validate(published.content.recipe)
        if signature:
            functions = minhash.permutations(recipe.bands * recipe.rows, published.content.seed)
            own = deduplicate.signed(row["text"], recipe, functions)["signature"]
            yield f"{'similarity to it, estimated':<34}{minhash.similarities(own, signature, 1)[0]:.4g}"
        if reason == "near_copy" and recipe.verify:
            yield f"{'asked of each pair between them':<34}{shown(recipe.min_jaccard)}"
        yield f"-> left: {reason} of {url or document}"
    else:
        others = found[0]["cluster_size"] - 1
        yield f"-> stays, for {others:,} more that are copies of it" if others else "-> stays, the only one of its kind"


def staying(document: str, published: Published) -> tuple[str | None, bytes | None]:
    """URL and signature of a document that others left for, in this crawl or in one that it was held against.

    None for what was removed since.
    """
    storage, inputs = published.storage, published.content.inputs
    earlier = [one.location for one in inputs if one.stage == deduplicate.STAGE.name]
    for folder in (published.folder, *(one for one in earlier if artifact.is_published(storage, one))):
        of_crawl = artifact.read(storage, folder)
        for signed in found_rows(of_crawl, "id", document, deduplicate.MINHASH):
            texts = [one.location for one in of_crawl.content.inputs if one.stage == "extract"]
            pages = [
                page
                for one in texts
                if artifact.is_published(storage, one)
                for page in found_rows(artifact.read(storage, one), "id", document)
            ]
            return pages[0]["url"] if pages else None, signed["signature"]
    return None, None


def redactions(found: list[dict[str, Any]], _published: Published, _row: dict[str, Any]) -> Iterator[str]:
    """What redact replaced."""
    if not found:
        yield "not there: it was made of other decisions of deduplicate"
        return
    counts = json.loads(found[0]["redactions"])
    for kind, count in counts.items():
        yield f"{kind:<34}{count:,}"
    yield f"-> {len(found[0]['text']):,} characters of text, {sum(counts.values()):,} places replaced"


def removal(found: list[dict[str, Any]], _published: Published, _row: dict[str, Any]) -> Iterator[str]:
    """What decontaminate decided."""
    if not found:
        yield "not there: it was made of another redact"
    elif found[0]["reason"]:
        yield f"-> left: {found[0]['reason']} ({found[0]['detail']})"
    else:
        yield "-> stays"


def tokens(found: list[dict[str, Any]], published: Published, _row: dict[str, Any]) -> Iterator[str]:
    """Where the document's tokens lie: once for each time that it is repeated."""
    for place in found:
        shard = place["file"].removesuffix(".documents.parquet")
        split, first, number = shard.rsplit("-", 1)[0], place["start"], place["document"]
        yield f"-> {split}: {place['tokens']:,} tokens of {shard}, from {first:,} on (document {number:,})"
    beyond = published.content.counts.dropped.get("beyond_budget", 0) if published.content.counts else 0
    if not found and beyond:
        yield f"-> left: beyond_budget, one of {beyond:,} documents for which shard.train_tokens has no room"
    elif not found:
        yield "not there: it was made of other decisions of decontaminate"


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
