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
from typing import Any

import pyarrow as pa
import xxhash

from jobs import clusters, parts, session
from jobs.filter import commit_decisions, totals
from jobs.page import minhash
from jobs.page.words import words
from jobs.table import read_rows, write_table, writing
from pipeline import artifact, errors
from pipeline.artifact import Published, Stage
from pipeline.recipe import Deduplicate
from pipeline.storage import Storage

STAGE = Stage("deduplicate", 6, ("xxhash", "numpy"))
MINHASH = ".minhash"
SCHEMA = pa.schema([*((name, pa.string()) for name in ("id", "cluster", "reason")), ("cluster_size", pa.int64())])


def kept(storage: Storage, extract: str, decided: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a part of extract that the decisions beside it keep, in order."""
    stay = {row["id"] for row in read_rows(storage, decided, ("id", "reason")) if row["reason"] is None}
    return (row for row in read_rows(storage, extract, ("id", *columns)) if row["id"] in stay)


def signed(text: str, recipe: Deduplicate, functions: minhash.Functions) -> dict[str, Any]:
    """What is compared of a text, as in `clusters.SIGNATURES`: its words in small letters, one space between them."""
    text = " ".join(words(text.lower()))
    values = minhash.signature(text.split(" "), recipe.ngram_words, functions)
    return {
        "exact": xxhash.xxh3_128_digest(text.encode()),
        "bands": minhash.band_hashes(values, recipe.bands),
        "signature": minhash.shortened(values),
    }


def sign(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part: exact hash, band hashes and signature of each document that filter kept."""
    recipe = Deduplicate.model_validate(payload["recipe"])
    storage = Storage(payload["root"])
    functions = minhash.permutations(recipe.bands * recipe.rows, payload["seed"])
    count = 0
    with writing(storage, f"{payload['work']}/signatures/part-{name}.parquet", clusters.SIGNATURES) as write:
        for row in kept(storage, payload["extract"], payload["filter"], ("text",)):
            write({"id": row["id"]} | signed(row["text"], recipe, functions))
            count += 1
            if count % 1000 == 0:
                yield {"done": count}
    yield {"commit": {"rows": count}}


def decide(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part: who of the documents that filter kept stays, by the clusters found; and the signatures of those."""
    storage = Storage(payload["root"])
    clustered = {row["row"]: row for row in read_rows(storage, payload["clusters"])}
    documents = list(read_rows(storage, payload["signatures"]))
    alone = {"reason": None, "cluster_size": 1}
    rows = [
        {"cluster": row["id"]} | clustered.get(number, alone) | {"id": row["id"]}
        for number, row in enumerate(documents)
    ]
    stays = [row for row, decided in zip(documents, rows, strict=True) if decided["reason"] is None]
    file = f"part-{name}{MINHASH}"
    write_table(storage, f"{payload['folder']}/{file}", stays, clusters.SIGNATURES)
    described = artifact.describe(storage, payload["folder"], file, len(stays)).model_dump()
    for state in commit_decisions(storage, payload["folder"], name, rows, SCHEMA):
        yield {"commit": state["commit"] | {"minhash": described}}


def comparable(job: session.Job, other: Published) -> None:
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


def run(job: session.Job) -> Published:
    """The stage."""
    extracted, filtered = session.upstream(job, "extract"), session.upstream(job, "filter")
    earlier = [artifact.read(job.storage, folder) for folder in job.recipe.deduplicate.against]
    for other in earlier:
        comparable(job, other)
    building = session.open_stage(job, STAGE, [extracted, filtered, *earlier])
    if isinstance(building, Published):
        return building
    payload = {
        "recipe": job.recipe.section("deduplicate"),
        "seed": job.recipe.seed,
        "root": job.storage.root,
        "folder": building.pointer.folder,
        "work": building.work,
    }
    names = [session.part_name(file) for file in extracted.files(".parquet")]
    signatures = [f"{building.work}/signatures/part-{name}.parquet" for name in names]
    spark = session.spark("deduplicate")
    files = zip(names, extracted.files(".parquet"), filtered.files(".parquet"), strict=True)
    todo = [(name, payload | {"extract": text, "filter": decided}) for name, text, decided in files]
    compared = parts.run_parts(spark, building, todo, sign, "sign")
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
    todo = [
        (name, payload | {"signatures": file, "clusters": f"{building.work}/clusters/{number}.parquet"})
        for number, (name, file) in enumerate(zip(names, signatures, strict=True))
    ]
    decided_parts = parts.run_parts(spark, building, todo, decide, "part")
    manifest_files, counts = totals(decided_parts)
    seconds = parts.cpu_seconds(compared, spark) + parts.cpu_seconds(decided_parts, None)
    manifest_files += [artifact.File(**record["minhash"]) for record in decided_parts.values()]
    published = building.publish(manifest_files, counts, numbers, cpu_seconds=seconds)
    spark.stop()
    return published


def main() -> None:
    run(session.job(__doc__))


if __name__ == "__main__":
    errors.run(main)
