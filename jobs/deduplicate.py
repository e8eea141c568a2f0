"""Exact copies, then near copies by MinHash-LSH, in Spark on numbers only.

    spark-submit jobs/deduplicate.py --recipe recipes/demo.yaml --root .crawl2chat/data

For each part, rows (id, cluster, reason, cluster_size) of the documents that filter kept, in order. `cluster` is the id
of the document that is kept for it: the first of its connected component in the order of WARC files and records.
Beside them, in `.minhash`, are the signatures of the kept documents, which `deduplicate.against` of a later crawl reads
instead of text. Of a cluster with a document of an earlier corpus, that document is kept, and none of this crawl.

`cluster_size` of a kept document counts it and all that were dropped for it, exact and near copies; it is 1 for a
document without copies, and null for a dropped one. Documents of earlier corpora are not counted. To count the copies
of one, count the rows whose `cluster` is its id. FineWeb2 records the same number (`minhash_cluster_size`, Penedo et
al. 2025) to weigh a document by how often it is on the web.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash

from jobs.copies import clusters, minhash
from jobs.page.words import words
from jobs.stage import decisions, parts, session
from jobs.stage.parts import Part, State
from jobs.stage.table import read_rows, write_table, writing
from pipeline import artifact, command, errors
from pipeline.artifact import Published, Stage
from pipeline.command import Job
from pipeline.recipe import Deduplicate
from pipeline.storage import Storage

STAGE = Stage("deduplicate", 7, ("xxhash", "numpy"))
MINHASH = ".minhash"
SCHEMA = pa.schema([*((name, pa.string()) for name in ("id", "cluster", "reason")), ("cluster_size", pa.int64())])


def signed(text: str, recipe: Deduplicate, functions: minhash.Functions) -> dict[str, Any]:
    """The columns of `clusters.SIGNATURES` for a text, of its words in lower case with single spaces between them."""
    text = " ".join(words(text.lower()))
    values = minhash.signature(text.split(" "), recipe.ngram_words, functions)
    return {
        "exact": xxhash.xxh3_128_digest(text.encode()),
        "bands": minhash.band_hashes(values, recipe.bands),
        "signature": minhash.shortened(values),
    }


@dataclass(frozen=True)
class Clustered(Part):
    """A part's file of signatures, and its file of clusters."""

    signatures: str
    clusters: str


@dataclass(frozen=True)
class Deduplication:
    """Signs the parts, then decides on them. Decisions are written to `folder`, the signatures of all to `work`."""

    storage: Storage
    folder: str
    work: str
    recipe: Deduplicate
    seed: int

    def signatures(self, name: str) -> str:
        """File of a part's signatures."""
        return f"{self.work}/signatures/part-{name}.parquet"

    def sign(self, part: decisions.Decided) -> Iterator[State]:
        """Write exact hash, band hashes and signature of each document of a part that filter kept."""
        functions = minhash.permutations(self.recipe.bands * self.recipe.rows, self.seed)
        count = 0
        with writing(self.storage, self.signatures(part.name), clusters.SIGNATURES) as write:
            for row in decisions.kept(self.storage, part, ("text",)):
                write({"id": row["id"]} | signed(row["text"], self.recipe, functions))
                count += 1
                if count % 1000 == 0:
                    yield parts.ALIVE
        yield {"commit": {"rows": count}}

    def decide(self, part: Clustered) -> Iterator[State]:
        """Decide for each document that filter kept whether it stays; write the signatures of those that do."""
        clustered = {row["row"]: row for row in read_rows(self.storage, part.clusters)}
        documents = list(read_rows(self.storage, part.signatures))
        alone = {"reason": None, "cluster_size": 1}  # for a document that is in no cluster
        rows = [
            {"cluster": row["id"]} | clustered.get(number, alone) | {"id": row["id"]}
            for number, row in enumerate(documents)
        ]
        kept = [row for row, decided in zip(documents, rows, strict=True) if decided["reason"] is None]
        file = f"part-{part.name}{MINHASH}"
        write_table(self.storage, f"{self.folder}/{file}", kept, clusters.SIGNATURES)
        described = artifact.describe(self.storage, self.folder, file, len(kept)).model_dump()
        for state in decisions.write(self.storage, self.folder, part.name, rows, SCHEMA):
            yield {"commit": state["commit"] | {"minhash": described}}


def comparable(job: Job, other: Published) -> None:
    """Raise `RecipeError` where the signatures of an earlier corpus were made by other hash functions."""
    settings = job.recipe.section("deduplicate") | {"seed": job.recipe.seed, "version": STAGE.version}
    theirs = other.content.recipe | {"seed": other.content.seed, "version": other.content.stage_version}
    for name in ("ngram_words", "bands", "rows", "seed", "version"):
        if other.content.stage != STAGE.name or theirs[name] != settings[name]:
            raise errors.RecipeError(
                f"deduplicate.against: {other.folder} was made by stage {other.content.stage} with {name} "
                f"{theirs.get(name)}, not {settings[name]}",
                "name artifacts of deduplicate that were made with the same settings and seed",
            )


def run(job: Job) -> Published:
    """Sign every document, find the clusters, decide, publish."""
    extracted, filtered = command.upstream(job, "extract"), command.upstream(job, "filter")
    earlier = [artifact.read(job.storage, folder) for folder in job.recipe.deduplicate.against]
    for other in earlier:
        comparable(job, other)
    building = command.open_stage(job, STAGE, [extracted, filtered, *earlier])
    if isinstance(building, Published):
        return building
    work = Deduplication(job.storage, building.pointer.folder, building.work, job.recipe.deduplicate, job.recipe.seed)
    texts = decisions.aligned(extracted, filtered)
    signatures = [work.signatures(part.name) for part in texts]
    building.restore("signatures", "sign")
    spark = session.spark("deduplicate")
    # 1. Signatures, a part each.
    signed_parts = parts.run_parts(spark, building, texts, work.sign, "sign")
    # 2. Clusters, of all parts together.
    numbers = building.commits(["clusters"]).get("clusters")
    if numbers is None:
        corpus = clusters.Corpus(
            job.storage.root,
            signatures,
            [file for other in earlier for file in other.files(MINHASH)],
            sum(record["rows"] for record in signed_parts.values())
            + sum(other.content.counts.kept for other in earlier if other.content.counts),
        )
        numbers = clusters.find(spark, corpus, job.recipe.deduplicate, f"{building.work}/clusters")
        building.commit("clusters", numbers)
    # 3. Decisions, a part each.
    clustered = [
        Clustered(part.name, file, f"{building.work}/clusters/{number}.parquet")
        for number, (part, file) in enumerate(zip(texts, signatures, strict=True))
    ]
    decided_parts = parts.run_parts(spark, building, clustered, work.decide, "part")
    files, counts = decisions.totals(decided_parts)
    if filtered.content.counts:  # else a document that no part has would be missing on both sides
        counts = counts.model_copy(update={"in_": filtered.content.counts.kept})
    seconds = parts.cpu_seconds(signed_parts, spark) + parts.cpu_seconds(decided_parts, None)
    files += [artifact.File(**record["minhash"]) for record in decided_parts.values()]
    published = building.publish(files, counts, numbers, cpu_seconds=seconds)
    building.discard("signatures")  # also of documents that were dropped; those of the others are in the artifact
    spark.stop()
    return published


def main() -> None:
    job = command.parse(__doc__)
    with command.recording(job, STAGE.name):
        run(job)


if __name__ == "__main__":
    errors.run(main)
