"""Near-duplicates among millions of synthetic signatures: `make bench-deduplicate`.

    python -m bench.deduplicate [--documents 5000000] [--root .crawl2chat/bench-deduplicate]

Plants clusters of documents that share all but a few of their hashes, runs the stage's own search over them, and says
whether exactly the planted clusters were found, in what time and memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from jobs.copies import clusters, minhash
from jobs.stage import session
from jobs.stage.table import read_table
from pipeline.recipe import Deduplicate, load
from pipeline.storage import Storage

HOME = Path(__file__).resolve().parents[1]
PART = 100_000
Numbers = np.ndarray[Any, np.dtype[np.int64]]
CHANGED = 2  # hashes of a copy that differ: a Jaccard similarity of about 0.98, which LSH misses once in 10**12


def truth(documents: int, seed: int) -> Numbers:
    """First member of each document's cluster: nine in ten are alone, the others in clusters of 2 to 50."""
    rng = np.random.default_rng(seed)
    clusters = np.arange(documents)
    members = rng.permutation(documents)[: documents // 10]
    at = 0
    while at < len(members):
        group = members[at : at + int(rng.integers(2, 51))]
        clusters[group] = group.min()
        at += len(group)
    return clusters


def parts(planted: Numbers, recipe: Deduplicate, seed: int) -> Iterator[pa.Table]:
    """The signatures, `PART` documents at a time."""
    hashes, copied = recipe.bands * recipe.rows, np.bincount(planted, minlength=len(planted)) > 1
    for start in range(0, len(planted), PART):
        numbers = range(start, min(start + PART, len(planted)))
        values = np.random.default_rng([seed, start]).integers(0, 2**63, (len(numbers), hashes))
        for row, number in zip(values, numbers, strict=True):
            if copied[planted[number]]:
                row[:] = np.random.default_rng([seed, 1, int(planted[number])]).integers(0, 2**63, hashes)
            if planted[number] != number:
                own = np.random.default_rng([seed, 2, number])
                row[own.choice(hashes, CHANGED, replace=False)] = own.integers(0, 2**63, CHANGED)
        signatures = values.astype(np.uint64)
        yield pa.table(
            {
                "id": [f"{number:032x}" for number in numbers],
                "exact": [number.to_bytes(16, "little") for number in numbers],
                "bands": [minhash.band_hashes(signature, recipe.bands) for signature in signatures],
                "signature": [minhash.shortened(signature) for signature in signatures],
            },
            schema=clusters.SIGNATURES,
        )


class Memory:
    """The largest resident size of this process and all below it, GiB."""

    def __init__(self) -> None:
        self.most = 0.0
        self._done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(1.0):
            sizes = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    sizes += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, sizes / 2**30)


def shuffles(spark: SparkSession) -> list[tuple[int, int]]:
    """(rows, bytes) that each stage so far wrote for others to read, as the session's own status page says."""
    context = spark.sparkContext
    address = f"{context.uiWebUrl}/api/v1/applications/{context.applicationId}/stages"
    with urllib.request.urlopen(address) as answer:
        stages = sorted(json.load(answer), key=lambda stage: stage["stageId"])
    written = [(stage["shuffleWriteRecords"], stage["shuffleWriteBytes"]) for stage in stages]
    return [(rows, size) for rows, size in written if rows]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5_000_000)
    parser.add_argument("--root", type=Path, default=HOME / ".crawl2chat/bench-deduplicate")
    given = parser.parse_args()
    recipe = load(HOME / "recipes/fineweb.yaml")
    storage, planted = Storage(given.root), truth(given.documents, recipe.seed)
    shutil.rmtree(given.root, ignore_errors=True)
    (given.root / "signatures").mkdir(parents=True)
    files = []
    for number, table in enumerate(parts(planted, recipe.deduplicate, recipe.seed)):
        files.append(f"signatures/part-{number:05d}.parquet")
        pq.write_table(table, given.root / files[-1])
    corpus = clusters.Corpus(storage.root, files, [], given.documents)
    memory, spark, began = Memory(), session.spark("bench"), time.monotonic()
    numbers = clusters.find(spark, corpus, recipe.deduplicate, "clusters")
    seconds, written = time.monotonic() - began, shuffles(spark)
    shuffled = sum(size for _, size in written) / 1e9
    spark.stop()
    made = np.arange(given.documents)
    for number in range(len(files)):
        found = read_table(storage, f"clusters/{number}.parquet", ["row", "cluster"])
        made[found["row"].to_numpy() + number * PART] = [int(id_, 16) for id_ in found["cluster"].to_pylist()]
    signatures = sum((given.root / file).stat().st_size for file in files) / 1e9
    differ = int((made != planted).sum())
    heads = ("documents", "signatures, GB", "shuffled, GB", "seconds", "peak GiB", "pairs tried", "clusters", "wrong")
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---:|' * len(heads)}")
    told = [f"{given.documents:,}", f"{signatures:.2f}", f"{shuffled:.2f}", f"{seconds:.0f}", f"{memory.most:.1f}"]
    told += [f"{numbers[name]:,}" for name in ("candidate_pairs", "clusters")]
    print(f"| {' | '.join([*told, f'{differ:,}'])} |")
    print("\n| shuffle, in their order | rows | bytes | bytes a row |\n|---:|---:|---:|---:|")
    for number, (rows, size) in enumerate(written):
        print(f"| {number} | {rows:,} | {size:,} | {size / rows:.1f} |")
    shutil.rmtree(given.root)


if __name__ == "__main__":
    main()
