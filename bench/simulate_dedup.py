"""The shuffles of deduplicate at the size of a snapshot, simulated on one core: `make bench-simulate-dedup`.

    python -m bench.simulate_dedup [--documents 150000000 1200000000] [--seed 1]

How a crawl is modelled (`bench/simulation/crawl.py`); everything is assumed but what is called measured:

- A share of the documents is dropped: 73 of 757 (measured on the shared crawl), 16 of 36 in FineWeb (36 trillion tokens
  before MinHash within each snapshot, 20 after: Penedo et al. 2024), or 7 of 10, as a bad case. 31 of 73 of those are
  exact copies (measured on the shared crawl).
- The sizes of the clusters of the others have a Zipf distribution, with the exponent that yields that share.
- A near copy has kept each hash of its cluster's text with a probability drawn uniformly from `min_jaccard` to 1. The
  bands that it shares, and its similarity to every other copy, follow from its hashes.

What is simulated, and how:

1. The number of clusters of each size is drawn for the whole crawl.
2. The load of every task of the band shuffle is drawn too, from the multinomial distributions of the number of buckets
   of each size per task. That a cluster's 14 buckets depend on each other is neglected.
3. The task with the largest load is then generated row by row, and the stage's own search (`clusters.pairs`) runs on
   it, its memory traced.
4. The cost of the pairs that the search finds is simulated hash by hash on up to 20,000 documents of the clusters of 2,
   of 3 and 4, of 5 to 8 documents and so on, and multiplied by their number (`bench/simulation/costs.py`); for clusters
   beyond 16,384, whose documents cost no more each, with the rates of the class below.

Bytes per row are Spark's own. `--bytes` measures them again (which needs Java) and prints them, to be written into
`BYTES`: rows of each shuffle with places of 90,000 parts, written compressed by a map task as large as one part of a
snapshot.
"""

from __future__ import annotations

import argparse
import datetime
import time
import tracemalloc

import numpy as np
import pyarrow as pa

from bench.deduplicate import shuffles
from bench.folders import HOME
from bench.simulation.costs import Costs, costs, rates
from bench.simulation.crawl import Buckets, Crawl, Ints, buckets
from jobs.copies import clusters
from jobs.stage import session
from pipeline.recipe import VerifiedDeduplicate, load

DROPPED = {"shared crawl": 73 / 757, "FineWeb": 16 / 36, "bad case": 0.7}  # share of the documents
BYTES = {  # per row of each shuffle, as `--bytes` measured them
    "exact hashes": 36.4,
    "bands, to leave out exact copies": 137.2,
    "band hashes": 15.8,
    "pairs": 15.5,
    "places of pairs": 9.1,
    "signatures": 238.1,
    "pairs to the first signature": 15.5,
    "pairs with it to the second": 246.0,
    "stars around others": 25.6,
    "edges, a round of components": 5 * 15.5,  # which shuffles them about five times
}
PARTS, PAGES = 90_000, 1_666  # parts of a snapshot; documents per part, where filter keeps 150 million


def search(drawn: Buckets, task: int, max_bucket: int, rng: np.random.Generator) -> tuple[int, int, float]:
    """Run the stage's own search on one task. Returns its rows, the pairs found, and its peak bytes per row."""
    # 1. The task's rows, generated and shuffled, as a shuffle delivers them.
    sizes = np.repeat(np.arange(max_bucket + 1), drawn.small[:, task])
    sizes = np.concatenate([sizes, drawn.large[drawn.task == task]])
    hashes = np.repeat(rng.integers(-(2**63), 2**63, len(sizes)), sizes)
    order = rng.permutation(len(hashes))
    hashes, places = hashes[order], order.astype(np.int64)
    del order, sizes
    # 2. The search.
    tracemalloc.start()
    tracemalloc.reset_peak()
    pairs = sum(len(low) for _, low, _ in clusters.pairs(hashes, places, max_bucket))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return len(hashes), pairs, peak / len(hashes) + 16  # hash and place of a row, 16 bytes, were allocated before


def shuffled(crawl: Crawl, drawn: Buckets, spent: Costs) -> dict[str, tuple[float, float]]:
    """Rows and bytes of each shuffle."""
    rows = {
        "exact hashes": crawl.documents,
        "bands, to leave out exact copies": crawl.documents,
        "band hashes": int(drawn.loads.sum()),
        "pairs": drawn.pairs,
        "places of pairs": spent.places,
        "signatures": 2 * spent.places,
        "pairs to the first signature": spent.pairs + spent.star_pairs,
        "pairs with it to the second": spent.pairs + spent.star_pairs,
        "stars around others": spent.star_rows,
        "edges, a round of components": spent.edges,
    }
    return {name: (count, count * BYTES[name]) for name, count in rows.items()}


def line(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def measure_bytes(rng: np.random.Generator) -> None:
    """Print the bytes per row that Spark writes of each shuffle."""
    spark = session.spark("bytes")
    spark.conf.set("spark.sql.adaptive.enabled", "false")

    def hashes(count: int) -> Ints:
        return rng.integers(-(2**63), 2**63, count)

    def places(count: int) -> Ints:
        return (rng.integers(0, PARTS, count) << 32) + rng.integers(0, PAGES, count)

    def signatures(count: int) -> pa.Array:
        return pa.array([rng.bytes(224) for _ in range(count)], pa.binary())

    # One map task each, with as many reduce tasks as in a snapshot; what one task holds decides how well it compresses.
    own = np.arange(PAGES)  # the places of one part
    arrays = pa.ListArray.from_arrays(np.arange(0, 14 * PAGES + 1, 14, dtype=np.int32), hashes(14 * PAGES))
    for name, tasks, rows in (
        ("exact hashes", 200, {"high": hashes(PAGES), "low": hashes(PAGES), "place": own}),
        ("bands, to leave out exact copies", 200, {"place": own, "bands": arrays}),
        ("band hashes", 525, {"hash": hashes(14 * PAGES), "place": np.repeat(own, 14)}),
        ("pairs", 200, {"low": places(400_000), "high": places(400_000)}),
        ("places of pairs", 200, {"place": places(100_000)}),
        ("signatures", 200, {"place": places(20_000), "signature": signatures(20_000)}),
        (
            "pairs with it to the second",
            200,
            {"high": places(20_000), "low": places(20_000), "left": signatures(20_000)},
        ),
        ("stars around others", 200, {"bucket": hashes(100_000), "low": places(100_000), "high": places(100_000)}),
    ):
        by = list(rows)[: 2 if name == "exact hashes" else 1]  # an exact hash has two columns
        frame = spark.createDataFrame(pa.table(rows)).coalesce(1).repartition(tasks, *by)
        frame._jdf.queryExecution().toRdd().count()  # `frame.count()` would shuffle no columns
        count, size = shuffles(spark)[-1]
        print(f"{name}: {size / count:.1f}", flush=True)
    spark.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[150_000_000, 1_200_000_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes", action="store_true", help="only measure the bytes per row of each shuffle")
    options = parser.parse_args()
    if options.bytes:
        measure_bytes(np.random.default_rng(options.seed))
        return
    recipe = load(HOME / "recipes/fineweb.yaml").deduplicate
    assert isinstance(recipe, VerifiedDeduplicate)
    # 1. Simulate each share at each size.
    lines, tables = list[str](), list[tuple[str, dict[str, tuple[float, float]]]]()
    for name, dropped in DROPPED.items():
        rng = np.random.default_rng(options.seed)
        crawls = [Crawl.drawn(count, dropped, rng) for count in options.documents]
        # Of one share, crawls of all sizes have the same distribution of clusters: the largest one's sample serves all.
        sampled = rates(max(crawls, key=lambda crawl: crawl.documents), recipe, rng)
        for crawl in crawls:
            tasks = -(-crawl.documents * recipe.bands // clusters.HASHES_PER_TASK)
            drawn, spent = buckets(crawl, recipe, tasks, rng), costs(crawl, sampled)
            loads = drawn.loads
            rows, pairs, bytes_per_row = search(drawn, int(loads.argmax()), recipe.max_bucket, rng)
            tables.append((f"{name}, {crawl.documents / 1e6:,.0f} M", shuffled(crawl, drawn, spent)))
            lines.append(
                line(
                    f"{name}, {crawl.exponent:.2f}",
                    f"{crawl.documents / 1e6:,.0f}",
                    f"{crawl.sizes[-1]:,}",
                    f"{tasks:,}",
                    f"{rows / 1e6:.2f}",
                    f"{rows / loads.mean():.3f}",
                    f"{len(drawn.large):,}",
                    f"{drawn.large.max(initial=0):,}",
                    f"{pairs / 1e6:.2f}",
                    f"{rows * bytes_per_row / 2**20:,.0f}",
                    f"{(spent.pairs + spent.star_pairs) / 1e6:,.0f}",
                )
            )
    # 2. Print the load and the cost of each, then all its shuffles.
    print(f"{datetime.date.today()}, {time.process_time():.0f} CPU seconds\n")
    heads = (
        "dropped as in, exponent", "M documents", "largest cluster", "tasks", "largest task, M hashes", "of the mean",
        "large buckets", "largest bucket", "pairs of the largest task, M", "its memory, MiB", "pairs verified, M",
    )  # fmt: skip
    print("\n".join([line(*heads), f"|---|{'---:|' * (len(heads) - 1)}", *lines, ""]))
    print("GB shuffled (million rows)\n")
    print(line("shuffle", "bytes per row", *(name for name, _ in tables)))
    print(f"|---|{'---:|' * (len(tables) + 1)}")
    for shuffle, size in BYTES.items():
        cells = (f"{table[shuffle][1] / 1e9:,.1f} ({table[shuffle][0] / 1e6:,.0f})" for _, table in tables)
        print(line(shuffle, size, *cells))
    print(line("all", "", *(f"{sum(size for _, size in table.values()) / 1e9:,.0f}" for _, table in tables)))


if __name__ == "__main__":
    main()
