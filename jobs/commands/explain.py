"""One page through every step again, from its record in the archive: every score, and why it was kept or dropped.

    python -m jobs.commands.explain https://… --root .crawl2chat/data [--run demo]

Extraction and scores are computed anew and compared with what was recorded; copies, redactions and tokens are read from
the artifacts of the run, as far as it came. Without `--run`, the newest run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from jobs import deduplicate, extract
from jobs.archive import sources, warc
from jobs.archive.reader import HEADER_BYTES
from jobs.archive.response import Capture
from jobs.copies import minhash
from jobs.page import classifier, quality, urls
from jobs.stage.table import read_rows
from pipeline import artifact, command, errors
from pipeline.artifact import Published
from pipeline.errors import InputError
from pipeline.recipe import Deduplicate, Extract, Filter, VerifiedDeduplicate
from pipeline.storage import Storage
from pipeline.terminal import one_line, show


def rows_with(published: Published, column: str, value: str, suffix: str = ".parquet") -> list[dict[str, Any]]:
    """Rows with `value` in `column`, of the files that end with `suffix`; each with the name of its `file`."""
    rows = []
    for file in published.files(suffix):
        matching = read_rows(published.storage, file, where=[(column, "=", value)])
        rows += [row | {"file": file.rsplit("/", 1)[-1]} for row in matching]
    return rows


def capture_of(row: dict[str, Any], extracted: Published, recipe: Extract) -> Capture:
    """The capture of a row of extract, read again at its offset.

    Raises `InputError` where the archive no longer holds it there: it was changed, or it is gzipped as a whole, and the
    offset is that in the inflated file.
    """
    for source in extracted.content.inputs:
        if source.location.rsplit("/", 1)[-1] == row["warc"]:
            size = recipe.max_html_bytes + 2 * HEADER_BYTES
            with sources.open_at(source.location, row["offset"], size) as stream:
                try:
                    capture = next(warc.captures(stream, recipe.max_html_bytes), None)
                except (warc.NotWarc, warc.Truncated) as error:
                    raise _not_there(source.location, row["offset"], str(error)) from error
            if capture is None:
                raise _not_there(source.location, row["offset"], "no response")
            return capture
    raise InputError(f"{row['warc']} is no input of {extracted.folder}", "this is a defect: report it")


def _not_there(location: str, offset: int, why: str) -> InputError:
    return InputError(
        f"{location} has no response at byte {offset}: {why}",
        "name the archive that was extracted; one that is gzipped as a whole must be unpacked, and extracted again",
    )


def replayed(row: dict[str, Any], extracted: Published) -> dict[str, Any]:
    """The row that extract makes of the same capture today."""
    recipe = Extract.model_validate(extracted.content.recipe)
    lists = recipe.block_list
    name = extract.block_list(extracted.storage, recipe, urls.identity(lists.source, lists.categories))
    blocked = extract.open_block_list(extracted.storage, name, urls.terms(lists))
    model = classifier.load(recipe.quality_model) if recipe.quality_model else None
    with extract.reader(recipe, model) as read:
        return extract.page(capture_of(row, extracted, recipe), blocked, recipe, read)


def shown(value: Any) -> str:
    """A value on one line; scores with four digits, enough to compare them with a limit."""
    return f"{value:.4g}" if isinstance(value, float) else one_line(value)


def explained(storage: Storage, run: str, row: dict[str, Any]) -> Iterator[str]:
    """Lines about one row of extract."""
    extracted = artifact.of_run(storage, run, "extract")
    if row["offset"] < 0 or row["reason"] == "damaged":  # the row of a whole archive, or of damaged bytes: no page
        yield f"{one_line(row['url'])}\n  -> {row['reason']}: {row['detail']}"
        return
    # What is larger than a page may be was not read whole then, and would not be now: its record says all there is.
    large = row["html_bytes"] > Extract.model_validate(extracted.content.recipe).max_html_bytes
    today = row if large else replayed(row, extracted)
    yield f"{one_line(row['url'])}\n  {row['warc']} at {row['offset']}, captured {row['date']}, document {row['id']}"
    yield "extract"
    columns = ("status", "mime", "html_bytes", "charset", "languages", "title")
    for name in (*columns, "detected", "language", "language_score", "quality"):
        if today.get(name) is not None:
            yield f"  {name:<34}{shown(today[name])}"
    differs = [name for name in ("reason", "text") if today.get(name) != row[name]]
    if differs:
        yield f"  not as recorded: {', '.join(differs)} (other library versions or another block list)"
    if today.get("reason"):
        yield f"  -> dropped: {today['reason']}" + (f" ({today['detail']})" if today.get("detail") else "")
    else:
        yield f"  -> {len(today['text']):,} characters of text"
    if row["reason"] is None:  # the recorded reason decides: the later stages read the record
        yield from judged(storage, run, row, row if today.get("reason") else today)


def judged(storage: Storage, run: str, row: dict[str, Any], scores: dict[str, Any]) -> Iterator[str]:
    """Lines about a document with text: its scores beside the limits of filter, then the later stages."""
    filtered = published_by(storage, run, "filter")
    if filtered is None:
        return
    yield "filter"
    reasons = []
    for check in quality.checks(scores, Filter.model_validate(filtered.content.recipe)):
        mark = f"   <- {check.reason}" if check.broken else ""
        yield f"  {check.score:<34}{shown(check.value):<12}{check.relation} {shown(check.limit)}{mark}"
        reasons += [check.reason] * check.broken
    recorded = rows_with(filtered, "id", row["id"])
    if not recorded:
        yield "  no row: filter read another artifact of extract"
        return
    reason = recorded[0]["reason"]
    if reason != (reasons[0] if reasons else None):
        yield "  not as recorded: reason (other library versions)"
    yield f"  -> dropped: {reason}" if reason else "  -> kept"
    if reason is None:
        yield from followed(storage, run, row)


def followed(storage: Storage, run: str, row: dict[str, Any]) -> Iterator[str]:
    """Lines about what the later stages of the run recorded of a document that filter kept."""
    lines_of = {"deduplicate": copies, "redact": redactions, "decontaminate": removal, "shard": tokens}
    for stage, lines in lines_of.items():
        published = published_by(storage, run, stage)
        if published is None:
            continue
        yield stage
        records = rows_with(published, "id", row["id"])
        for line in lines(records, published, row):
            yield f"  {line}"
        if not records or records[0].get("reason"):
            return


def published_by(storage: Storage, run: str, stage: str) -> Published | None:
    """The artifact that a stage published in this run, or None."""
    to = artifact.pointer(storage, run, stage)
    return artifact.of_run(storage, run, stage) if to and to.finished else None


def copies(records: list[dict[str, Any]], published: Published, row: dict[str, Any]) -> Iterator[str]:
    """What deduplicate decided."""
    if not records:
        yield "no row: deduplicate read other decisions of filter"
    elif reason := records[0]["reason"]:
        document = records[0]["cluster"]
        url, signature = kept_instead(document, published)
        recipe: Deduplicate = TypeAdapter(Deduplicate).validate_python(published.content.recipe)
        if signature:
            functions = minhash.permutations(recipe.bands * recipe.rows, published.content.seed)
            own = deduplicate.signed(row["text"], recipe, functions)["signature"]
            yield f"{'similarity to it, estimated':<34}{minhash.similarities(own, signature, 1)[0]:.4g}"
        if reason == "near_copy" and isinstance(recipe, VerifiedDeduplicate):
            # The two may be connected by other documents: only each pair between them had to be similar.
            yield f"{'least of each pair between them':<34}{shown(recipe.min_jaccard)}"
        yield f"-> dropped: {reason} of {one_line(url or document)}"
    else:
        others = records[0]["cluster_size"] - 1
        yield f"-> kept, and {others:,} copies of it dropped" if others else "-> kept, without copies"


def kept_instead(document: str, published: Published) -> tuple[str | None, bytes | None]:
    """URL and signature of a document that others were dropped for, in this crawl or in an earlier one.

    None for what was removed since.
    """
    storage, inputs = published.storage, published.content.inputs
    earlier = [source.location for source in inputs if source.stage == deduplicate.STAGE.name]
    for folder in (published.folder, *(folder for folder in earlier if artifact.is_published(storage, folder))):
        of_crawl = artifact.read(storage, folder)
        for signed in rows_with(of_crawl, "id", document, deduplicate.MINHASH):
            texts = [source.location for source in of_crawl.content.inputs if source.stage == "extract"]
            pages = [
                page
                for folder in texts
                if artifact.is_published(storage, folder)
                for page in rows_with(artifact.read(storage, folder), "id", document)
            ]
            return pages[0]["url"] if pages else None, signed["signature"]
    return None, None


def redactions(records: list[dict[str, Any]], _published: Published, _row: dict[str, Any]) -> Iterator[str]:
    """What redact replaced."""
    if not records:
        yield "no row: redact read other decisions of deduplicate"
        return
    counts = json.loads(records[0]["redactions"])
    for kind, count in counts.items():
        yield f"{kind:<34}{count:,}"
    yield f"-> {len(records[0]['text']):,} characters of text, {sum(counts.values()):,} places replaced"


def removal(records: list[dict[str, Any]], _published: Published, _row: dict[str, Any]) -> Iterator[str]:
    """What decontaminate decided."""
    if not records:
        yield "no row: decontaminate read another artifact of redact"
    elif records[0]["reason"]:
        yield f"-> dropped: {records[0]['reason']} ({records[0]['detail']})"
    else:
        yield "-> kept"


def tokens(records: list[dict[str, Any]], published: Published, _row: dict[str, Any]) -> Iterator[str]:
    """Where the document's tokens are: a line for each copy of it in the shards."""
    for place in records:
        shard = place["file"].removesuffix(".documents.parquet")
        split, first, number = shard.rsplit("-", 1)[0], place["start"], place["document"]
        yield f"-> {split}: {place['tokens']:,} tokens of {shard}, from {first:,} on (document {number:,})"
    beyond = published.content.counts.dropped.get("beyond_budget", 0) if published.content.counts else 0
    if not records and beyond:
        yield f"-> dropped: beyond_budget, one of {beyond:,} documents for which shard.train_tokens has no room"
    elif not records:
        yield "no tokens: shard read other decisions of decontaminate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    command.add_root(parser)
    parser.add_argument("--run", help="name of the run; by default the newest")
    options = parser.parse_args()
    storage = Storage(options.root)
    run = artifact.run_name(options.run) if options.run else artifact.newest_run(storage, "extract")
    rows = rows_with(artifact.of_run(storage, run, "extract"), "url", options.url)
    if not rows:
        remedy = "check the URL: it is compared letter by letter"
        raise InputError(f"run {run!r} has no capture of {options.url}", remedy)
    for row in rows:
        show(explained(storage, run, row))


if __name__ == "__main__":
    errors.run(main)
