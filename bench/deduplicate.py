"""Near-duplicates among millions of synthetic signatures: `make bench-deduplicate`.

    python -m bench.deduplicate [--documents 5000000] [--root .crawl2chat/bench-deduplicate]

Plants clusters of documents that share all but a few of their hashes, runs the stage's own search on them, and prints
how many documents it puts into another cluster than the planted one (none, if it is right), with time and memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from bench.folders import HOME
from jobs.copies import clusters, minhash
from jobs.stage import session
from jobs.stage.table import read_table
from pipeline.recipe import Deduplicate, load
from pipeline.storage import Storage

PART = 100_000  # documents per file
Numbers = np.ndarray[Any, np.dtype[np.int64]]
# Hashes of a copy that differ, of 112: a similarity of 0.98. They touch at most two bands of 14, so LSH misses none.
CHANGED = 2


def truth(documents: int, seed: int) -> Numbers:
    """The first member of each document's cluster, shape (documents,): nine in ten are alone, the others in clusters of
    2 to 50.
    """
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
    """The signatures of all documents, `PART` at a time."""
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
    """The peak of the resident sizes of this process and its descendants, GiB, sampled every second."""

    def __init__(self) -> None:
        self.peak = 0.0
        threading.Thread(target=self._sample, daemon=True).start()  # until the process ends

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            size = 0
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    size += each.memory_info().rss
            self.peak = max(self.peak, size / 2**30)
            time.sleep(1.0)


def shuffles(spark: SparkSession) -> list[tuple[int, int]]:
    """(rows, bytes) of each shuffle so far, from the REST API of the session's UI, which is gone once it stops."""
    context = spark.sparkContext
    address = f"{context.uiWebUrl}/api/v1/applications/{context.applicationId}/stages"
    with urllib.request.urlopen(address) as response:
        stages = sorted(json.load(response), key=lambda stage: stage["stageId"])
    written = [(stage["shuffleWriteRecords"], stage["shuffleWriteBytes"]) for stage in stages]
    return [(rows, size) for rows, size in written if rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5_000_000)
    parser.add_argument("--root", type=Path, default=HOME / ".crawl2chat/bench-deduplicate")
    options = parser.parse_args()
    recipe = load(HOME / "recipes/fineweb.yaml")
    # 1. Write the signatures of the planted clusters, as the stage's step `sign` does.
    storage, planted = Storage(options.root), truth(options.documents, recipe.seed)
    shutil.rmtree(options.root, ignore_errors=True)
    (options.root / "signatures").mkdir(parents=True)
    files = []
    for number, table in enumerate(parts(planted, recipe.deduplicate, recipe.seed)):
        files.append(f"signatures/part-{number:05d}.parquet")
        pq.write_table(table, options.root / files[-1])
    # 2. Find the clusters.
    corpus = clusters.Corpus(storage.root, files, [], options.documents)
    memory, spark, began = Memory(), session.spark("bench"), time.monotonic()
    numbers = clusters.find(spark, corpus, recipe.deduplicate, "clusters")
    seconds, written = time.monotonic() - began, shuffles(spark)
    shuffled = sum(size for _, size in written) / 1e9
    spark.stop()
    # 3. Compare them with the planted ones. Documents without copies are in no row: each is its own cluster.
    found = np.arange(options.documents)
    for number in range(len(files)):
        rows = read_table(storage, f"clusters/{number}.parquet", ["row", "cluster"])
        found[rows["row"].to_numpy() + number * PART] = [int(id_, 16) for id_ in rows["cluster"].to_pylist()]
    signatures = sum((options.root / file).stat().st_size for file in files) / 1e9
    wrong = int((found != planted).sum())
    heads = ("documents", "signatures, GB", "shuffled, GB", "seconds", "peak GiB", "candidates", "clusters", "wrong")
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---:|' * len(heads)}")
    cells = [f"{options.documents:,}", f"{signatures:.2f}", f"{shuffled:.2f}", f"{seconds:.0f}", f"{memory.peak:.1f}"]
    cells += [f"{numbers[name]:,}" for name in ("candidate_pairs", "clusters")]
    print(f"| {' | '.join([*cells, f'{wrong:,}'])} |")
    print("\n| shuffle, in order | rows | bytes | bytes per row |\n|---:|---:|---:|---:|")
    for number, (count, size) in enumerate(written):
        print(f"| {number} | {count:,} | {size:,} | {size / count:.1f} |")
    shutil.rmtree(options.root)


if __name__ == "__main__":
    main()
