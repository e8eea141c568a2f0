"""Which redacted documents leave for good: those that hold an evaluation set's text, and those taken down.

    spark-submit jobs/decontaminate.py --recipe recipes/demo.yaml --root .crawl2chat/data

For each part of redact, rows (id, reason, detail) in the same order. `contaminated`: the document shares a run of
`ngram_words` words with a set of the recipe, in small letters and without punctuation (GPT-3's 13-grams: Brown et al.
2020, appendix C). `taken_down`: its URL, its host or a domain above it, or its id is listed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from jobs import parts, session
from jobs.filter import commit_decisions, totals
from jobs.page.take_down import TAKEN_DOWN, entries, listed
from jobs.page.words import words
from jobs.table import read_rows, write_table
from pipeline import errors, lines
from pipeline.artifact import Published, Stage
from pipeline.recipe import Decontaminate
from pipeline.storage import Storage

STAGE = Stage("decontaminate", 2, ("xxhash",))
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "reason", "detail")])
_GRAMS = pa.schema([("hash", pa.uint64()), ("set", pa.string())])


def ngrams(text: str, n: int) -> list[int]:
    """64-bit hashes of the text's word n-grams, in order; a shorter text has none."""
    plain = [word for word in words(text.lower()) if word[0].isalnum()]
    return [xxhash.xxh3_64_intdigest(" ".join(plain[i : i + n]).encode()) for i in range(len(plain) - n + 1)]


def _table(storage: Storage, name: str) -> tuple[npt.NDArray[np.uint64], list[str]]:
    rows = list(read_rows(storage, name))
    return np.array([row["hash"] for row in rows], dtype=np.uint64), [row["set"] for row in rows]


def work(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part of redact: decide, write, count."""
    storage, down = Storage(payload["root"]), frozenset(payload["down"])
    hashes, sets = _table(storage, payload["grams"])
    rows = []
    for number, row in enumerate(read_rows(storage, payload["redact"], ("id", "url", "text"))):
        decided = {"id": row["id"]}
        if entry := listed(row, down):
            decided |= {"reason": TAKEN_DOWN, "detail": entry}
        elif len(hashes):
            grams = np.array(ngrams(row["text"], payload["ngram_words"]), dtype=np.uint64)
            at = np.minimum(np.searchsorted(hashes, grams), len(hashes) - 1)
            if (found := np.flatnonzero(hashes[at] == grams)).size:
                detail = f"{sets[at[found[0]]]}: {found.size} n-grams"
                decided |= {"reason": "contaminated", "detail": detail}
        rows.append({"reason": None, "detail": None} | decided)
        if number % 1000 == 999:
            yield {"done": number}
    yield from commit_decisions(storage, payload["folder"], name, rows, SCHEMA)


def stays(storage: Storage, redact: str, decided: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a part of redact that stay, in order."""
    gone = {row["id"] for row in read_rows(storage, decided, ("id", "reason")) if row["reason"]}
    return (row for row in read_rows(storage, redact, columns) if row["id"] not in gone)


def aligned(redacted: Published, decided: Published) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part name, files of redact and of the decisions beside it) for the stages that read what stays."""
    for text, other in zip(redacted.files(".parquet"), decided.files(".parquet"), strict=True):
        yield session.part_name(text), {"redact": text, "decided": other}


def _checksums(files: Iterable[str]) -> dict[str, str]:
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def run(job: session.Job) -> Published:
    """The stage."""
    recipe: Decontaminate = job.recipe.decontaminate
    redacted = session.upstream(job, "redact")
    found: dict[int, str] = {}
    for file in recipe.sets:
        for texts in lines.texts(file, "check decontaminate.sets"):
            grams = (gram for text in texts for gram in ngrams(text, recipe.ngram_words))
            found |= dict.fromkeys(grams, Path(file).name)
    down = sorted({entry for file in recipe.take_down for entry in entries(file)})
    building = session.open_stage(job, STAGE, [redacted], _checksums([*recipe.sets, *recipe.take_down]))
    if isinstance(building, Published):
        return building
    shared = f"{building.work}/grams.parquet"
    write_table(job.storage, shared, [{"hash": key, "set": found[key]} for key in sorted(found)], _GRAMS)
    payload = {
        "root": job.storage.root,
        "folder": building.pointer.folder,
        "grams": shared,
        "ngram_words": recipe.ngram_words,
        "down": down,
    }
    files = redacted.files(".parquet")
    spark = session.spark("decontaminate")
    todo = [(session.part_name(file), payload | {"redact": file}) for file in files]
    records = parts.run_parts(spark, building, todo, work)
    made, counts = totals(records)
    reasons = Counter(counts.dropped)
    numbers = {"evaluation_ngrams": len(found), "take_down_entries": len(down), **reasons}
    published = building.publish(made, counts, numbers, cpu_seconds=parts.cpu_seconds(records, spark))
    spark.stop()
    return published


def main() -> None:
    run(session.job(__doc__))


if __name__ == "__main__":
    errors.run(main)
