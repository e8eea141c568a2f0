"""Drops redacted documents that hold text of an evaluation set, and those that were taken down.

    spark-submit jobs/decontaminate.py --recipe recipes/demo.yaml --root .crawl2chat/data

For each part of redact, rows (id, reason, detail) in the same order. `contaminated`: the document shares an n-gram of
`ngram_words` words with a set of the recipe, in lower case and without punctuation (GPT-3's 13-grams: Brown et al.
2020, appendix C). `taken_down`: its URL, its host or a domain above it, or its id is listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from jobs.page.take_down import TAKEN_DOWN, entries, names_of
from jobs.page.words import words
from jobs.stage import decisions, parts
from jobs.stage.parts import State
from jobs.stage.table import read_rows, write_table
from pipeline import command, errors, lines
from pipeline.artifact import Published, Stage
from pipeline.command import Job
from pipeline.recipe import Decontaminate
from pipeline.storage import Storage
from pipeline.terminal import show

STAGE = Stage("decontaminate", 3, ("xxhash",))
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "reason", "detail")])
_NAMED = 20  # entries that a warning shows
_GRAMS = pa.schema([("hash", pa.uint64()), ("set", pa.string())])


def ngrams(text: str, n: int) -> list[int]:
    """64-bit hashes of the text's word n-grams, in order; a text of fewer than `n` words has none."""
    plain = [word for word in words(text.lower()) if word[0].isalnum()]
    return [xxhash.xxh3_64_intdigest(" ".join(plain[i : i + n]).encode()) for i in range(len(plain) - n + 1)]


@dataclass(frozen=True)
class Decontamination:
    """Decides on the parts of redact.

    `grams`: file of the sets' n-grams, as sorted hashes; `down`: entries of the take-down lists, in normal form.
    """

    storage: Storage
    folder: str
    grams: str
    ngram_words: int
    down: frozenset[str]

    def work(self, part: decisions.Text) -> Iterator[State]:
        """Decide on each document of one part, and write the decisions."""
        of_sets = list(read_rows(self.storage, self.grams))
        hashes: npt.NDArray[np.uint64] = np.array([row["hash"] for row in of_sets], dtype=np.uint64)
        rows = []
        matched: set[str] = set()  # entries
        for number, row in enumerate(read_rows(self.storage, part.text, ("id", "url", "text"))):
            decided = {"id": row["id"]}
            if by := [name for name in names_of(row) if name in self.down]:
                decided |= {"reason": TAKEN_DOWN, "detail": by[0]}
                matched.update(by)
            elif len(hashes):
                grams = np.array(ngrams(row["text"], self.ngram_words), dtype=np.uint64)
                at = np.minimum(np.searchsorted(hashes, grams), len(hashes) - 1)
                if (shared := np.flatnonzero(hashes[at] == grams)).size:
                    detail = f"{of_sets[at[shared[0]]]['set']}: {shared.size} n-grams"
                    decided |= {"reason": "contaminated", "detail": detail}
            rows.append({"reason": None, "detail": None} | decided)
            if number % 1000 == 999:
                yield parts.ALIVE
        for state in decisions.write(self.storage, self.folder, part.name, rows, SCHEMA):
            yield {"commit": state["commit"] | {"matched": sorted(matched)}}


def _checksums(files: Iterable[str]) -> dict[str, str]:
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def run(job: Job) -> Published:
    """Hash the n-grams of the evaluation sets, decide on every part of redact, publish."""
    recipe: Decontaminate = job.recipe.decontaminate
    redacted = command.upstream(job, "redact")
    set_of: dict[int, str] = {}  # by n-gram
    for file in recipe.sets:
        for texts in lines.texts(file, "check decontaminate.sets"):
            grams = (gram for text in texts for gram in ngrams(text, recipe.ngram_words))
            set_of |= dict.fromkeys(grams, Path(file).name)
    down = frozenset(entry for file in recipe.take_down for entry in entries(file))
    building = command.open_stage(job, STAGE, [redacted], _checksums([*recipe.sets, *recipe.take_down]))
    if isinstance(building, Published):
        return building
    grams_file = f"{building.work}/grams.parquet"
    write_table(job.storage, grams_file, [{"hash": gram, "set": set_of[gram]} for gram in sorted(set_of)], _GRAMS)
    decontamination = Decontamination(job.storage, building.pointer.folder, grams_file, recipe.ngram_words, down)
    records, seconds = parts.run_step("decontaminate", building, decisions.texts(redacted), decontamination.work)
    files, counts = decisions.totals(records)
    unmatched = sorted(down.difference(*(record["matched"] for record in records.values())))
    if unmatched:
        some = ", ".join(unmatched[:_NAMED]) + (", …" if len(unmatched) > _NAMED else "")
        show([f"warning: {len(unmatched)} of {len(down)} take-down entries name no document: {some}"])
    numbers = {"evaluation_ngrams": len(set_of), "take_down_entries": len(down), "take_down_unmatched": len(unmatched)}
    numbers |= counts.dropped
    return building.publish(files, counts, numbers, cpu_seconds=seconds)


def main() -> None:
    job = command.parse(__doc__)
    with command.recording(job, STAGE.name):
        run(job)


if __name__ == "__main__":
    errors.run(main)
