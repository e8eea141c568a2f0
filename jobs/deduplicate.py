"""Exact copies, then near copies by MinHash-LSH, in Spark SQL on (id, hash) only.

    spark-submit jobs/deduplicate.py --recipe recipes/demo.yaml --root .crawl2chat/data

For each part, rows (id, cluster, reason) of the documents that filter kept, in order: `cluster` is the id of the
document that stays for it, the smallest of its connected component, so neither partitioning nor order decides. Beside
them, in `.minhash`, the signatures of those that stay: what `deduplicate.against` of a later crawl reads, instead of
text. A document of an earlier corpus always stays for its copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import xxhash
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType

from jobs import parts, session
from jobs.filter import commit_decisions, totals
from jobs.page import minhash
from jobs.page.words import words
from jobs.table import read_rows, write_table
from pipeline import artifact, errors
from pipeline.artifact import Building, Published, Stage
from pipeline.recipe import Deduplicate
from pipeline.storage import Storage

STAGE = Stage("deduplicate", 4, ("xxhash", "numpy"))
MINHASH = ".minhash"
FEW_EDGES = 1_000_000  # a few hundred MB, found in seconds by the driver alone
OLD, NEW = "0", "1"  # before an id while clusters are found: the smallest of a cluster is then an earlier corpus's
SCHEMA = pa.schema([("id", pa.string()), ("cluster", pa.string()), ("reason", pa.string())])
_SIGNATURES = pa.schema(
    [("id", pa.string()), ("exact", pa.string()), ("bands", pa.list_(pa.int64())), ("signature", pa.binary())]
)


def kept(storage: Storage, extract: str, decided: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a part of extract that the decisions beside it keep, in order."""
    stay = {row["id"] for row in read_rows(storage, decided, ("id", "reason")) if row["reason"] is None}
    return [row for row in read_rows(storage, extract, ("id", *columns)) if row["id"] in stay]


def sign(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part: exact hash, band hashes and signature of each document that filter kept."""
    recipe = Deduplicate.model_validate(payload["recipe"])
    storage = Storage(payload["root"])
    functions = minhash.permutations(recipe.bands * recipe.rows, payload["seed"])
    rows = []
    for number, row in enumerate(kept(storage, payload["extract"], payload["filter"], ("text",))):
        text = " ".join(words(row["text"].lower()))
        values = minhash.signature(text.split(" "), recipe.ngram_words, functions)
        rows.append(
            {
                "id": row["id"],
                "exact": xxhash.xxh3_128_hexdigest(text.encode()),
                "bands": minhash.band_hashes(values, recipe.bands),
                "signature": values.tobytes(),
            }
        )
        if number % 1000 == 999:
            yield {"done": number}
    file = f"signatures/part-{name}.parquet"
    write_table(storage, f"{payload['work']}/{file}", rows, _SIGNATURES)
    yield {"commit": {"rows": len(rows)}}


def decide(name: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One part: who of the documents that filter kept stays, by the clusters found; and the signatures of those."""
    storage = Storage(payload["root"])
    clusters = {row["id"]: row for row in read_rows(storage, payload["clusters"])}
    signed = read_rows(storage, payload["signatures"])
    stays = [row for row in signed if row["id"] not in clusters]
    file = f"part-{name}{MINHASH}"
    write_table(storage, f"{payload['folder']}/{file}", stays, _SIGNATURES)
    described = artifact.describe(storage, payload["folder"], file, len(stays)).model_dump()
    rows = [{"id": row["id"], "cluster": row["id"], "reason": None} | clusters.get(row["id"], {}) for row in signed]
    for state in commit_decisions(storage, payload["folder"], name, rows, SCHEMA):
        yield {"commit": state["commit"] | {"minhash": described}}


def pairs(documents: DataFrame, recipe: Deduplicate) -> tuple[DataFrame, DataFrame]:
    """Candidate pairs (low, high) of ids that share a band's bucket; and the buckets too large for all pairs.

    `documents`: (id, bands). A bucket above `max_bucket` gives a star: each document with the smallest id in it.
    """
    bands = documents.select("id", F.posexplode("bands").alias("band", "hash"))
    buckets = (
        bands.groupBy("band", "hash").agg(F.sort_array(F.collect_list("id")).alias("ids")).where(F.size("ids") > 1)
    )
    small = buckets.where(F.size("ids") <= recipe.max_bucket)
    low = small.select("ids", F.posexplode("ids").alias("at", "low"))
    every = low.select("low", F.explode(F.expr("slice(ids, at + 2, size(ids))")).alias("high"))
    large = buckets.where(F.size("ids") > recipe.max_bucket)
    star = large.select(F.col("ids")[0].alias("low"), F.explode(F.expr("slice(ids, 2, size(ids))")).alias("high"))
    return every.union(star).distinct(), large


def verified(candidates: DataFrame, documents: DataFrame, least: float) -> DataFrame:
    """The candidate pairs whose estimated Jaccard similarity reaches `least`. `documents`: (id, signature)."""
    similar = F.udf(lambda left, right: minhash.similarity(left, right), DoubleType())  # hints would mean pandas
    left = documents.select(F.col("id").alias("low"), F.col("signature").alias("left"))
    right = documents.select(F.col("id").alias("high"), F.col("signature").alias("right"))
    scored = candidates.join(left, "low").join(right, "high").withColumn("similar", similar("left", "right"))
    return scored.where(F.col("similar") >= least).select("low", "high")


def restarred(large: DataFrame, edges: DataFrame, documents: DataFrame, recipe: Deduplicate) -> tuple[DataFrame, int]:
    """The edges with those that a star of a large bucket missed, and how many pairs were tried for them.

    Who is not like the smallest id of a bucket is starred again around the smallest of those left, `max_bucket` times
    at most: so a document costs no more pairs than in the largest small bucket.
    """
    tried = 0
    members = large.select("band", "hash", F.explode("ids").alias("id"))
    for attempt in range(recipe.max_bucket):
        star = members.join(members.groupBy("band", "hash").agg(F.min("id").alias("low")), ["band", "hash"])
        star = star.where("id != low")
        if attempt:  # the first star's pairs stand in `edges` already
            candidates = star.select("low", F.col("id").alias("high")).distinct().localCheckpoint()
            tried += candidates.count()
            edges = edges.union(verified(candidates, documents, recipe.min_jaccard)).distinct().localCheckpoint()
        left = star.join(edges.withColumnRenamed("high", "id"), ["low", "id"], "left_anti")
        members = left.select("band", "hash", "id").localCheckpoint()
        if members.isEmpty():
            break
    return edges, tried


def components(spark: SparkSession, edges: DataFrame) -> DataFrame:
    """(id, cluster): each id of an edge with the smallest id of its connected component.

    Large-star and small-star in turn until nothing changes (Kiveris et al. 2014, "Connected Components in MapReduce
    and Beyond"). `edges`: (low, high) with low < high.
    """
    current = edges.select(F.col("high").alias("u"), F.col("low").alias("v")).distinct()
    signature = None
    while True:
        # Large-star: each node tells its larger neighbours of its smallest one.
        both = current.union(current.select(F.col("v").alias("u"), F.col("u").alias("v")))
        least = both.groupBy("u").agg(F.min("v").alias("m")).withColumn("m", F.least("m", "u"))
        large = both.join(least, "u").where("v > u").select(F.col("v").alias("u"), F.col("m").alias("v"))
        # Small-star: each node ties its smaller neighbours, and itself, to the smallest of them.
        down = large.where("u > v").distinct()
        least = down.groupBy("u").agg(F.min("v").alias("m"))
        tied = down.join(least, "u").select(F.col("v").alias("u"), F.col("m").alias("v")).where("u > v")
        current = tied.union(least.select("u", F.col("m").alias("v"))).distinct().localCheckpoint()
        state = current.agg(F.count("*"), F.sum(F.xxhash64("u", "v").cast("decimal(38,0)"))).first()
        if state == signature:
            return current.groupBy("u").agg(F.min("v").alias("cluster")).select(F.col("u").alias("id"), "cluster")
        signature = state


def united(edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """As `components`, in this process: union-find whose roots are the smallest ids."""
    root: dict[str, str] = {}

    def find(id_: str) -> str:
        path = []
        while root.setdefault(id_, id_) != id_:
            path.append(id_)
            id_ = root[id_]
        root.update(dict.fromkeys(path, id_))
        return id_

    for left, right in edges:
        low, high = sorted((find(left), find(right)))
        root[high] = low
    return {id_: find(id_) for id_ in root}


def connected(spark: SparkSession, edges: DataFrame, count: int) -> dict[str, str]:
    """Cluster by id, of each id of an edge: a few edges need no cluster of machines."""
    if count <= FEW_EDGES:
        return united((row.low, row.high) for row in edges.collect())
    return {row.id: row.cluster for row in components(spark, edges).collect()}


def clusters(
    spark: SparkSession, building: Building, recipe: Deduplicate, files: list[str], earlier: list[str]
) -> dict[str, Any]:
    """Find all clusters, write them to the work folder, and return the numbers that say what was found.

    `files`: signatures of this corpus; `earlier`: of others, whose documents stay.
    """
    root = building.storage.root
    sources = [*((NEW, file) for file in files), *((OLD, file) for file in earlier)]

    def load(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for row in batch.to_pylist():
                signed = [found | {"id": row["age"] + found["id"]} for found in read_rows(Storage(root), row["file"])]
                yield from pa.Table.from_pylist(signed, schema=_SIGNATURES).to_batches(max_chunksize=10_000)

    listed = spark.createDataFrame(spark.sparkContext.parallelize(sources, len(sources)), "age string, file string")
    schema = "id string, exact string, bands array<bigint>, signature binary"
    documents = listed.mapInArrow(load, schema).persist()  # read three times: exact groups, bands, verification
    exact = documents.groupBy("exact").agg(F.min("id").alias("first")).join(documents.select("id", "exact"), "exact")
    copies = exact.where("id != first").select("id", F.col("first").alias("cluster")).localCheckpoint()
    unique = documents.join(copies, "id", "left_anti")
    candidates, large = pairs(unique, recipe)
    candidates = candidates.localCheckpoint()
    edges, tried = candidates, 0
    if recipe.verify:
        edges = verified(candidates, unique, recipe.min_jaccard).localCheckpoint()
        edges, tried = restarred(large, edges, unique, recipe)
    verified_pairs = edges.count()
    near = connected(spark, edges, verified_pairs)
    first = ((row.id, row.cluster) for row in copies.collect())
    rows = [
        *({"id": id_, "cluster": near.get(cluster, cluster), "reason": "exact_copy"} for id_, cluster in first),
        *({"id": id_, "cluster": cluster, "reason": "near_copy"} for id_, cluster in near.items() if id_ != cluster),
    ]
    rows = [row for row in rows if row["id"].startswith(NEW)]
    known = sum(row["cluster"].startswith(OLD) for row in rows)
    rows = [row | {"id": row["id"][1:], "cluster": row["cluster"][1:]} for row in rows]
    write_table(building.storage, f"{building.work}/clusters.parquet", sorted(rows, key=lambda r: r["id"]), SCHEMA)
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["cluster"]] = sizes.get(row["cluster"], 1) + 1
    return {
        "candidate_pairs": candidates.count() + tried,
        "verified_pairs": verified_pairs,
        "large_buckets": large.count(),
        "clusters": len(sizes),
        "known_before": known,
        "largest_cluster": max(sizes.values(), default=1),
    }


def comparable(job: session.Job, other: Published) -> None:
    """Raise `RecipeError` where the signatures of an earlier corpus were made by other hash functions."""
    settings = job.recipe.section("deduplicate") | {"seed": job.recipe.seed}
    theirs = other.content.recipe | {"seed": other.content.seed}
    for name in ("ngram_words", "bands", "rows", "seed"):
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
        "clusters": f"{building.work}/clusters.parquet",
    }
    names = [session.part_name(file) for file in extracted.files(".parquet")]
    signatures = [f"{building.work}/signatures/part-{name}.parquet" for name in names]
    spark = session.spark("deduplicate")
    files = zip(names, extracted.files(".parquet"), filtered.files(".parquet"), strict=True)
    todo = [(name, payload | {"extract": text, "filter": decided}) for name, text, decided in files]
    signed = parts.run_parts(spark, building, todo, sign, "sign")
    numbers = building.commits().get("clusters")
    if numbers is None:
        numbers = clusters(
            spark,
            building,
            job.recipe.deduplicate,
            signatures,
            [file for other in earlier for file in other.files(MINHASH)],
        )
        building.commit("clusters", numbers)
    todo = [(name, payload | {"signatures": file}) for name, file in zip(names, signatures, strict=True)]
    decided_parts = parts.run_parts(spark, building, todo, decide, "part")
    manifest_files, counts = totals(decided_parts)
    seconds = parts.cpu_seconds(signed, spark) + parts.cpu_seconds(decided_parts, None)
    manifest_files += [artifact.File(**record["minhash"]) for record in decided_parts.values()]
    published = building.publish(manifest_files, counts, numbers, cpu_seconds=seconds)
    spark.stop()
    return published


def main() -> None:
    run(session.job(__doc__))


if __name__ == "__main__":
    errors.run(main)
