"""Clusters of documents that are exact or near copies of each other, in Spark on numbers alone: no text is shuffled.

A document is represented by its *place*: the number of its part in the upper 32 bits, its row there in the lower. Of a
cluster the smallest place is kept, which is the first document in the order of the crawl's files; so neither partitions
nor the order of work decide. Parts of earlier corpora have negative numbers, so that their documents are always kept.

Per band of a document 16 bytes are shuffled; signatures only of documents that share a bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.window import Window

from jobs.copies import minhash
from jobs.stage.table import read_table, write_table
from pipeline.recipe import Deduplicate, VerifiedDeduplicate
from pipeline.storage import Storage

SIGNATURES = pa.schema(
    [
        ("id", pa.string()),
        ("exact", pa.binary(16)),
        ("bands", pa.list_(pa.int64())),
        ("signature", pa.binary()),
    ]
)
CLUSTERS = pa.schema(
    [("row", pa.int64()), ("cluster", pa.string()), ("reason", pa.string()), ("cluster_size", pa.int64())]
)
FEW_EDGES = 1_000_000  # up to which the driver alone connects them: in seconds, with a few hundred MB
_ROW_BITS = 32
_ROWS = 2**_ROW_BITS - 1
HASHES_PER_TASK = 4_000_000  # band hashes that one task sorts: 64 MB, and 280 MiB while it sorts
_BATCH = 100_000  # rows per Arrow batch for the JVM
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """The documents that are compared: files of `SIGNATURES` below `root`, of this crawl and of earlier corpora."""

    root: str
    new: list[str]
    earlier: list[str]
    documents: int  # in all files

    def listed(self, spark: SparkSession) -> DataFrame:
        """(part, file), one row per partition."""
        parts = [*enumerate(self.new), *((-1 - i, file) for i, file in enumerate(self.earlier))]
        return spark.createDataFrame(spark.sparkContext.parallelize(parts, len(parts)), "part bigint, file string")


def _places(part: int, rows: int) -> Places:
    return (np.int64(part) << _ROW_BITS) + np.arange(rows, dtype=np.int64)


def _batches(schema: pa.Schema, *columns: Any) -> Iterator[pa.RecordBatch]:
    yield from pa.table(list(columns), schema=schema).to_batches(max_chunksize=_BATCH)


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def exact_copies(spark: SparkSession, corpus: Corpus) -> DataFrame:
    """(place, first) of each document whose text a smaller place has too; `first` is the smallest one."""
    schema = pa.schema([("place", pa.int64()), ("high", pa.int64()), ("low", pa.int64())])

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for row in _rows(batches):
            hashes = b"".join(read_table(Storage(corpus.root), row["file"], ["exact"])["exact"].to_pylist())
            halves = np.frombuffer(hashes, np.int64).reshape(-1, 2)
            yield from _batches(schema, _places(row["part"], len(halves)), halves[:, 0], halves[:, 1])

    documents = corpus.listed(spark).mapInArrow(read, "place bigint, high bigint, low bigint")
    first = F.min("place").over(Window.partitionBy("high", "low"))
    return documents.select("place", first.alias("first")).where("place != first")


def bands(spark: SparkSession, corpus: Corpus, copies: DataFrame) -> DataFrame:
    """(hash, place), one row per band, of each document that is no exact copy."""
    schema = pa.schema([("place", pa.int64()), ("bands", pa.list_(pa.int64()))])

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for row in _rows(batches):
            hashes = read_table(Storage(corpus.root), row["file"], ["bands"])["bands"]
            yield from _batches(schema, _places(row["part"], len(hashes)), hashes)

    documents = corpus.listed(spark).mapInArrow(read, "place bigint, bands array<bigint>")
    unique = documents.join(copies.select("place"), "place", "left_anti")
    return unique.select(F.explode("bands").alias("hash"), "place")


def pairs(hashes: Places, places: Places, most: int) -> Iterator[tuple[Places | None, Places, Places]]:
    """Candidate pairs: places that share a band hash and so a bucket. Yields arrays (bucket, low, high), low < high.

    A bucket of up to `most` places gives all its pairs, with None for `bucket`. A larger one gives a star, in which
    each place is paired with the smallest one, with its hash as `bucket`: all pairs would be quadratically many.
    `hashes` and `places`: shape (documents * bands,).
    """
    if not len(hashes):
        return
    # Sorted by bucket, then by place: `rank` is a row's position in its bucket, `size` that bucket's size.
    order = np.lexsort((places, hashes))
    hashes, places = hashes[order], places[order]
    starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1])))
    sizes = np.diff(np.append(starts, len(hashes)))
    rank = np.arange(len(hashes)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    for distance in range(1, min(int(sizes.max()), most)):  # each place with the one `distance` rows before it
        at = np.flatnonzero((rank >= distance) & (size <= most))
        yield None, places[at - distance], places[at]
    at = np.flatnonzero((rank > 0) & (size > most))
    yield hashes[at], places[at - rank[at]], places[at]


def buckets(hashed: DataFrame, most: int, tasks: int) -> DataFrame:
    """`pairs` of all (hash, place), as (bucket, low, high); `bucket` is null for pairs of small buckets."""
    schema = pa.schema([("bucket", pa.int64()), ("low", pa.int64()), ("high", pa.int64())])

    def paired(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        columns = [(batch["hash"].to_numpy(), batch["place"].to_numpy()) for batch in batches]
        if not columns:
            return
        hashes, places = (np.concatenate(column) for column in zip(*columns, strict=True))
        del columns  # or memory holds all rows twice
        for bucket, low, high in pairs(hashes, places, most):
            yield from _batches(schema, pa.nulls(len(low), pa.int64()) if bucket is None else bucket, low, high)

    by_hash = hashed.repartition(tasks, "hash")
    return by_hash.mapInArrow(paired, "bucket bigint, low bigint, high bigint")


def lookup(spark: SparkSession, corpus: Corpus, places: DataFrame, column: str) -> DataFrame:
    """(place, `column`) of these places; only the files that hold them are read, each by one task."""
    field = SIGNATURES.field(column)
    schema = pa.schema([("place", pa.int64()), field])

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for row in _rows(batches):
            wanted = np.array(row["places"])
            values = read_table(Storage(corpus.root), row["file"], [column])[column]
            yield from _batches(schema, wanted, values.take(wanted & _ROWS))

    by_part = places.distinct().groupBy(F.expr(f"place >> {_ROW_BITS}").alias("part"))
    wanted = by_part.agg(F.collect_list("place").alias("places")).join(corpus.listed(spark), "part")
    return wanted.mapInArrow(read, f"place bigint, {column} {'string' if column == 'id' else 'binary'}")


def verified(spark: SparkSession, corpus: Corpus, candidates: DataFrame, least: float) -> DataFrame:
    """The candidate pairs (low, high) whose estimated Jaccard similarity reaches `least`."""

    def keep(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            left, right = (b"".join(batch[name].to_pylist()) for name in ("left", "right"))
            alike = pa.array(minhash.similarities(left, right, batch.num_rows) >= least)
            yield batch.select(["low", "high"]).filter(alike)

    ends = candidates.select(F.explode(F.array("low", "high")).alias("place"))
    signatures = lookup(spark, corpus, ends, "signature").localCheckpoint()  # joined twice, read once
    left = signatures.select(F.col("place").alias("low"), F.col("signature").alias("left"))
    right = signatures.select(F.col("place").alias("high"), F.col("signature").alias("right"))
    return candidates.join(left, "low").join(right, "high").mapInArrow(keep, "low bigint, high bigint")


def restarred(
    spark: SparkSession, corpus: Corpus, large: DataFrame, edges: DataFrame, recipe: VerifiedDeduplicate
) -> tuple[DataFrame, int]:
    """The edges with those that the stars of large buckets missed, and how many pairs were tried for them.

    `large`: (bucket, low, high), the stars tried so far. The places of a bucket that are not like its smallest one form
    a star again, around the smallest of them, and so on, `max_bucket` times at most: a document then costs no more
    pairs than in a bucket of `max_bucket` places.
    """
    tried = 0
    for _ in range(recipe.max_bucket):
        left = large.join(edges, ["low", "high"], "left_anti").select("bucket", F.col("high").alias("place"))
        first = F.min("place").over(Window.partitionBy("bucket"))
        star = left.select("bucket", first.alias("low"), F.col("place").alias("high")).where("low != high")
        large = star.localCheckpoint()
        if large.isEmpty():
            break
        candidates = large.select("low", "high").distinct().localCheckpoint()
        tried += candidates.count()
        alike = verified(spark, corpus, candidates, recipe.min_jaccard)
        edges = edges.union(alike).distinct().localCheckpoint()  # else each round would repeat those before
    return edges, tried


def components(edges: DataFrame) -> DataFrame:
    """(place, cluster) of all ends of edges but those that are the smallest of their connected component.

    `cluster` is the smallest place of the component. Large-star and small-star in turn until nothing changes (Kiveris
    et al. 2014, "Connected Components in MapReduce and Beyond"). `edges`: (low, high) with low < high.
    """
    current = edges.select(F.col("high").alias("u"), F.col("low").alias("v")).distinct()
    signature = None
    while True:
        # Large-star: each node connects its larger neighbours to its smallest neighbour.
        both = current.union(current.select(F.col("v").alias("u"), F.col("u").alias("v")))
        least = both.groupBy("u").agg(F.min("v").alias("m")).withColumn("m", F.least("m", "u"))
        large = both.join(least, "u").where("v > u").select(F.col("v").alias("u"), F.col("m").alias("v"))
        # Small-star: each node connects its smaller neighbours, and itself, to the smallest of them.
        down = large.where("u > v").distinct()
        least = down.groupBy("u").agg(F.min("v").alias("m"))
        tied = down.join(least, "u").select(F.col("v").alias("u"), F.col("m").alias("v")).where("u > v")
        current = tied.union(least.select("u", F.col("m").alias("v"))).distinct().localCheckpoint()
        state = current.agg(F.count("*"), F.sum(F.xxhash64("u", "v").cast("decimal(38,0)"))).first()
        if state == signature:
            return current.groupBy("u").agg(F.min("v").alias("cluster")).withColumnRenamed("u", "place")
        signature = state


def united(low: Places, high: Places) -> pa.Table:
    """As `components`, in this process: union-find whose roots are the smallest places."""
    root: dict[int, int] = {}

    def find(place: int) -> int:
        path = []
        while root.setdefault(place, place) != place:
            path.append(place)
            place = root[place]
        root.update(dict.fromkeys(path, place))
        return place

    for pair in zip(low.tolist(), high.tolist(), strict=True):
        first, second = sorted(map(find, pair))
        root[second] = first
    dropped = [place for place in root if find(place) != place]
    schema = pa.schema([("place", pa.int64()), ("cluster", pa.int64())])
    return pa.table([dropped, [root[place] for place in dropped]], schema=schema)


def connected(spark: SparkSession, edges: DataFrame, count: int) -> DataFrame:
    """As `components`, of `count` edges; in the driver where they are few."""
    if count > FEW_EDGES:
        return components(edges)
    collected = edges.toArrow()
    return spark.createDataFrame(united(collected["low"].to_numpy(), collected["high"].to_numpy()))


def find(spark: SparkSession, corpus: Corpus, recipe: Deduplicate, folder: str) -> dict[str, Any]:
    """Find all clusters. Returns numbers for the manifest.

    Writes `folder`/<number>.parquet for each part of `corpus.new`: rows of `CLUSTERS`, in the order of rows, for the
    documents that have copies. `cluster` is the id of the document that is kept; dropped documents have a reason, kept
    ones a cluster size.
    """
    # 1. Exact copies, which need no signatures.
    copies = exact_copies(spark, corpus).localCheckpoint()
    # 2. Candidate pairs by band hashes.
    tasks = max(
        int(spark.conf.get("spark.sql.shuffle.partitions") or 1),
        -(-corpus.documents * recipe.bands // HASHES_PER_TASK),
    )
    paired = buckets(bands(spark, corpus, copies), recipe.max_bucket, tasks).localCheckpoint()
    large = paired.where("bucket is not null")
    edges = candidates = paired.select("low", "high").distinct().localCheckpoint()
    large_buckets, tried = large.select("bucket").distinct().count(), candidates.count()
    # 3. Of these the pairs that are near copies.
    if isinstance(recipe, VerifiedDeduplicate):
        edges = verified(spark, corpus, candidates, recipe.min_jaccard).localCheckpoint()
        if large_buckets:
            edges, again = restarred(spark, corpus, large, edges, recipe)
            tried += again
    verified_pairs = edges.count()
    # 4. Their connected components. An exact copy is in the cluster of the document that has its text.
    near = connected(spark, edges, verified_pairs)
    of_copies = copies.join(near.withColumnRenamed("place", "first"), "first", "left").select(
        "place", F.coalesce("cluster", "first").alias("cluster"), F.lit("exact_copy").alias("reason")
    )
    of_near = near.select("place", "cluster", F.lit("near_copy").alias("reason"))
    dropped = of_copies.union(of_near).where("place >= 0").localCheckpoint()  # of this crawl
    sizes = dropped.groupBy("cluster").agg(F.count("*").alias("size")).localCheckpoint()
    _write(spark, corpus, dropped, sizes.where("cluster >= 0"), folder)
    known = F.sum(F.when(F.col("cluster") < 0, F.col("size")).otherwise(0))
    clusters, largest, known_before = sizes.agg(F.count("*"), F.max("size"), known).first() or (0, 0, 0)
    return {
        "candidate_pairs": tried,
        "verified_pairs": verified_pairs,
        "large_buckets": large_buckets,
        "clusters": clusters,
        "known_before": known_before or 0,
        "largest_cluster": (largest or 0) + 1,
    }


def _write(spark: SparkSession, corpus: Corpus, dropped: DataFrame, kept: DataFrame, folder: str) -> None:
    """Write the rows of `CLUSTERS`, part by part.

    `dropped`: (place, cluster, reason). `kept`: (cluster, size), the documents of this crawl that have copies, and how
    many were dropped for each.
    """

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for row in _rows(batches):
            rows = sorted(row["rows"] or [], key=lambda document: document["row"])
            write_table(Storage(corpus.root), f"{folder}/{row['part']}.parquet", rows, CLUSTERS)
            yield pa.RecordBatch.from_pydict({"part": [row["part"]]})

    none = F.lit(None)
    kept_members = kept.select(F.col("cluster").alias("place"), "cluster", none, F.expr("size + 1"))
    members = dropped.withColumn("cluster_size", none.cast("bigint")).union(kept_members)
    ids = lookup(spark, corpus, dropped.select(F.col("cluster").alias("place")), "id")
    rows = members.join(ids.withColumnRenamed("place", "cluster"), "cluster").select(
        F.expr(f"place >> {_ROW_BITS}").alias("part"),
        F.struct(F.expr(f"place & {_ROWS}").alias("row"), F.col("id").alias("cluster"), "reason", "cluster_size").alias(
            "document"
        ),
    )
    by_part = rows.groupBy("part").agg(F.collect_list("document").alias("rows"))
    parts = corpus.listed(spark).where("part >= 0").join(by_part, "part", "left")  # a file for each part, empty or not
    parts.select("part", "rows").mapInArrow(write, "part bigint").count()
