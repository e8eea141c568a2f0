"""Text and title of the documents that deduplicate kept, with placeholders for personal data.

    spark-submit jobs/redact.py --recipe recipes/demo.yaml --root .crawl2chat/data

Rows: `SCHEMA`. This is the first stage after extract that writes text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from jobs.page import pii
from jobs.stage import decisions, parts
from jobs.stage.parts import State
from jobs.stage.table import writing
from pipeline import artifact, command, errors
from pipeline.artifact import Counts, Published, Stage
from pipeline.command import Job
from pipeline.recipe import Redact
from pipeline.storage import Storage

STAGE = Stage("redact", 8, ("presidio-analyzer", "phonenumbers", "tldextract"))
LICENSES = 30  # most frequent declared licenses that the manifest counts
SAMPLES = 5  # masked strings of each kind that the manifest shows
_COLUMNS = ("url", "host", "warc", "offset", "date", "language", "language_score", "license", "title", "text")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "url", "host", "warc")),
        ("offset", pa.int64()),
        ("date", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("license", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("redactions", pa.string()),  # JSON object: kind -> count, in title and text
    ]
)


@dataclass(frozen=True)
class Redaction:
    """Redacts the documents that deduplicate kept, part by part."""

    storage: Storage
    folder: str
    recipe: Redact

    def work(self, part: decisions.Decided) -> Iterator[State]:
        """Redact the documents of one part, and write them."""
        total: Counter[str] = Counter()
        licenses: Counter[str] = Counter()
        samples: dict[str, list[str]] = {}
        file, count = f"part-{part.name}.parquet", 0
        with writing(self.storage, f"{self.folder}/{file}", SCHEMA) as write:
            for row in decisions.kept(self.storage, part, _COLUMNS):
                replaced: list[tuple[str, str]] = []  # (kind, masked string)
                for column in ("title", "text"):
                    if row[column] is not None:
                        kinds, model = self.recipe.kinds, self.recipe.person_model
                        row[column], spans = pii.redact(row[column], kinds, model, row["language"] or "en")
                        replaced += spans
                counts = Counter(kind for kind, _ in replaced)
                write(row | {"redactions": json.dumps(counts, sort_keys=True)})
                total.update(counts)
                licenses[row["license"] or ""] += 1
                add_samples(samples, replaced)
                count += 1
                if count % 200 == 0:
                    yield parts.ALIVE
        described = artifact.describe(self.storage, self.folder, file, count).model_dump()
        counted = {"documents": count, "redactions": total, "licenses": licenses, "samples": samples}
        yield {"commit": {"file": described} | counted}


def add_samples(samples: dict[str, list[str]], replaced: Iterable[tuple[str, str]]) -> None:
    """Add masked strings to those of their kind, up to `SAMPLES` different ones."""
    for kind, masked in replaced:
        of_kind = samples.setdefault(kind, [])
        if len(of_kind) < SAMPLES and masked not in of_kind:
            of_kind.append(masked)


def digest(folder: Path) -> str:
    """Hash of a spaCy pipeline's files. Raises `RecipeError` where `folder` holds none."""
    pii.people("", str(folder))  # loads it
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return artifact.digest({str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files})


def run(job: Job) -> Published:
    """Redact every part of extract, publish."""
    extracted, unique = command.upstream(job, "extract"), command.upstream(job, "deduplicate")
    section = job.recipe.redact
    assets = {"person_model": digest(Path(section.person_model))} if section.person_model else {}
    building = command.open_stage(job, STAGE, [extracted, unique], assets)
    if isinstance(building, Published):
        return building
    redaction = Redaction(job.storage, building.pointer.folder, section)
    records, seconds = parts.run_step("redact", building, decisions.aligned(extracted, unique), redaction.work)
    total, licenses = Counter[str](), Counter[str]()
    samples: dict[str, list[str]] = {}
    for record in records.values():
        total.update(record["redactions"])
        licenses.update(record["licenses"])
        add_samples(samples, ((kind, masked) for kind, some in record["samples"].items() for masked in some))
    documents = sum(record["documents"] for record in records.values())
    declared = sorted(((count, name) for name, count in licenses.items() if name), key=lambda row: (-row[0], row[1]))
    return building.publish(
        [artifact.File(**record["file"]) for record in records.values()],
        Counts(in_=unique.content.counts.kept if unique.content.counts else 0, kept=documents, dropped={}),
        {
            "redactions": dict(sorted(total.items())),
            "samples": dict(sorted(samples.items())),
            "licenses": {name: count for count, name in declared[:LICENSES]},
        },
        cpu_seconds=seconds,
    )


def main() -> None:
    job = command.parse(__doc__)
    with command.recording(job, STAGE.name):
        run(job)


if __name__ == "__main__":
    errors.run(main)
