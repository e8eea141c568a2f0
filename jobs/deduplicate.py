"""Exact copies, then near copies by MinHash-LSH, in Spark on numbers only.

    spark-submit jobs/deduplicate.py --recipe recipes/demo.yaml --root .crawl2chat/data

For each part, rows (id, cluster, reason, cluster_size) of the documents that filter kept, in order: `cluster` is the id
of the document that stays for it, the first of its connected component in the order of WARC files and records. Beside
them, in `.minhash`, the signatures of those that stay: what `deduplicate.against` of a later crawl reads, instead of
text. A document of an earlier corpus always stays for its copies.

`cluster_size`, of a document that stays, counts it and all that left for it, exact copies and near ones; 1 where it is
alone, null where a document left. No document of an earlier corpus is counted, since it would have stayed instead: how
often a crawl holds one of those, the rows say that name it as their cluster. FineWeb2 keeps the same number
(`minhash_cluster_size`, Penedo et al. 2025) to weigh a document by how often the web holds it.
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

STAGE = Stage("deduplicate", 6, ("xxhash", "numpy"))
MINHASH = ".minhash"
SCHEMA = pa.schema([*((name, pa.string()) for name in ("id", "cluster", "reason")), ("cluster_size", pa.int64())])


def signed(text: str, recipe: Deduplicate, functions: minhash.Functions) -> dict[str, Any]:
    """What is compared of a text, as in `clusters.SIGNATURES`: its words in small letters, one space between them."""
    text = " ".join(words(text.lower()))
    values = minhash.signature(text.split(" "), recipe.ngram_words, functions)
    return {
        "exact": xxhash.xxh3_128_digest(text.encode()),
        "bands": minhash.band_hashes(values, recipe.bands),
        "signature": minhash.shortened(values),
    }


@dataclass(frozen=True)
class Clustered(Part):
    """A part's signatures, and which of its documents belong to which cluster."""

    signatures: str
    clusters: str


@dataclass(frozen=True)
class Deduplication:
    """Signs the parts, then decides on them; decisions go below `folder`, signatures of all below `work`."""

    storage: Storage
    folder: str
    work: str
    recipe: Deduplicate
    seed: int

    def signatures(self, name: str) -> str:
        """File of a part's signatures."""
        return f"{self.work}/signatures/part-{name}.parquet"

    def sign(self, part: decisions.Decided) -> Iterator[State]:
        """One part: exact hash, band hashes and signature of each document that filter kept."""
        functions = minhash.permutations(self.recipe.bands * self.recipe.rows, self.seed)
        count = 0
        with writing(self.storage, self.signatures(part.name), clusters.SIGNATURES) as write:
            for row in decisions.kept(self.storage, part, ("text",)):
                write({"id": row["id"]} | signed(row["text"], self.recipe, functions))
                count += 1
                if count % 1000 == 0:
                    yield {"done": count}
        yield {"commit": {"rows": count}}

    def decide(self, part: Clustered) -> Iterator[State]:
        """Decide for each document that filter kept whether it stays; write the signatures of those that do."""
        clustered = {row["row"]: row for row in read_rows(self.storage, part.clusters)}
        documents = list(read_rows(self.storage, part.signatures))
        alone = {"reason": None, "cluster_size": 1}
        rows = [
            {"cluster": row["id"]} | clustered.get(number, alone) | {"id": row["id"]}
            for number, row in enumerate(documents)
        ]
        stays = [row for row, decided in zip(documents, rows, strict=True) if decided["reason"] is None]
        file = f"part-{part.name}{MINHASH}"
        write_table(self.storage, f"{self.folder}/{file}", stays, clusters.SIGNATURES)
        described = artifact.describe(self.storage, self.folder, file, len(stays)).model_dump()
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
    """The stage."""
    extracted, filtered = command.upstream(job, "extract"), command.upstream(job, "filter")
    earlier = [artifact.read(job.storage, folder) for folder in job.recipe.deduplicate.against]
    for other in earlier:
        comparable(job, other)
    building = command.open_stage(job, STAGE, [extracted, filtered, *earlier])
    if isinstance(building, Published):
        return building
    made = Deduplication(job.storage, building.pointer.folder, building.work, job.recipe.deduplicate, job.recipe.seed)
    texts = decisions.aligned(extracted, filtered)
    signatures = [made.signatures(part.name) for part in texts]
    spark = session.spark("deduplicate")
    compared = parts.run_parts(spark, building, texts, made.sign, "sign")
    numbers = building.commits(["clusters"]).get("clusters")
    if numbers is None:
        corpus = clusters.Corpus(
            job.storage.root,
            signatures,
            [file for other in earlier for file in other.files(MINHASH)],
            sum(record["rows"] for record in compared.values())
            + sum(other.content.counts.kept for other in earlier if other.content.counts),
        )
        numbers = clusters.find(spark, corpus, job.recipe.deduplicate, f"{building.work}/clusters")
        building.commit("clusters", numbers)
    clustered = [
        Clustered(part.name, file, f"{building.work}/clusters/{number}.parquet")
        for number, (part, file) in enumerate(zip(texts, signatures, strict=True))
    ]
    decided_parts = parts.run_parts(spark, building, clustered, made.decide, "part")
    manifest_files, counts = decisions.totals(decided_parts)
    seconds = parts.cpu_seconds(compared, spark) + parts.cpu_seconds(decided_parts, None)
    manifest_files += [artifact.File(**record["minhash"]) for record in decided_parts.values()]
    published = building.publish(manifest_files, counts, numbers, cpu_seconds=seconds)
    spark.stop()
    return published


def main() -> None:
    """Entry point."""
    run(command.parse(__doc__))


if __name__ == "__main__":
    errors.run(main)
